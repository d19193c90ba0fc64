"""A call of ``Generate`` on a worker, whichever way it goes: what it is asked for, what is read of it."""

from dataclasses import dataclass
from typing import Protocol

from penstock.inference.v1 import generate_pb2, inference_service_pb2
from penstock_core.telemetry.tracing import Metadata

_SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
GENERATE = f"/{_SERVICE.full_name}/Generate"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call to be made. ``who`` is the worker's name in errors; no timeout is no deadline."""

    who: str
    request: generate_pb2.GenerateRequest
    metadata: Metadata = ()
    timeout_s: float | None = None


class FrameStream(Protocol):
    """A call that has begun."""

    async def read(self, *, has_begun: bool) -> bytes | None:
        """The next serialized ``GenerateResponse``; None at the end.

        Args:
            has_begun: whether the worker has shown that it works on it.

        Raises:
            PenstockError: what the call failed with; WorkerLost, Unavailable if the connection broke.
            CancelledError: ``cancel`` was called.
        """
        ...

    def cancel(self) -> None:
        """End it, on the worker too; whoever reads is cancelled. Later than its end it does nothing."""
        ...
