"""One call of a generation, message by message, with every way it can break made an error."""

import asyncio
from collections.abc import AsyncGenerator

import grpc

from penstock.inference.v1 import generate_pb2
from penstock_core.errors import PenstockError, Rejected, WorkerLost
from penstock_core.requests.transcript import Response
from penstock_core.rpc.attempts import call_failure
from penstock_core.rpc.stalls import StallWatch

_Call = grpc.aio.UnaryStreamCall[generate_pb2.GenerateRequest, generate_pb2.GenerateResponse]


async def messages(
    call: _Call, who: str, stall_s: float | None = None
) -> AsyncGenerator[Response, None]:
    """A call's messages. Started is held back until there is more, since an attempt may yet fail.

    Args:
        call: the call; it is cancelled when this is closed.
        who: whose it is, for messages.
        stall_s: least silence that ends it; None for a router, which watches its workers itself.

    Raises:
        WorkerLost: it broke, ended too early or stood still.
        PenstockError: as it answered.
    """
    incoming = _Incoming(call, who, stall_s)
    held: Response | None = None
    completed = False
    try:
        while (message := await incoming.read()) is not None:
            if message.HasField("started"):
                held = message
                continue
            if held is not None:
                yield held
                held = None
            incoming.begins()
            completed = completed or message.HasField("completed")
            yield message
    finally:
        incoming.close()
    if not completed:
        raise WorkerLost("the stream ended before the generation did")


class _Incoming:
    """Reads one call; watches it from the first delta on."""

    def __init__(self, call: _Call, who: str, stall_s: float | None) -> None:
        self._call = call
        self._who = who
        self._stall_s = stall_s
        self._watch: StallWatch | None = None
        self._has_begun = False
        self._stands_still = False

    def begins(self) -> None:
        """More than ``started`` has come."""
        self._has_begun = True
        if self._stall_s is not None and self._watch is None:
            self._watch = StallWatch(self._give_up, floor_s=self._stall_s)

    async def read(self) -> Response | None:
        """The next message; None at the end."""
        if self._watch is not None:
            self._watch.waits()
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from error
        except asyncio.CancelledError:
            if not self._stands_still:
                raise
            raise WorkerLost(f"{self._who} stands still") from None
        if self._watch is not None:
            self._watch.got()
        return message if isinstance(message, Response) else None

    def close(self) -> None:
        """End the call."""
        if self._watch is not None:
            self._watch.close()
        self._call.cancel()

    def _failure(self, error: grpc.aio.AioRpcError) -> PenstockError:
        failure = call_failure(error, self._who, has_begun=self._has_begun)
        if self._has_begun and isinstance(failure, Rejected):
            # Once tokens came, a refusal it can no longer be.
            return WorkerLost(
                f"{self._who} went away: {failure.message}", metadata=failure.metadata
            )
        return failure

    def _give_up(self) -> bool:
        self._stands_still = True
        self._call.cancel()
        return True
