"""Proxied generation: the worker's bytes to the client, unparsed.

Before the first delta a failed attempt is repeated on another worker and the client sees nothing of
it; ``started`` is held back until then, so that it comes once. After the first delta there is no
retry: tokens would come twice.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeAlias

import grpc
from google.protobuf.message import Message

from penstock.inference.v1 import generate_pb2, inference_service_pb2
from penstock_core.errors import (
    Aborted,
    NoWorker,
    PenstockError,
    QuotaExceeded,
    Unavailable,
    WorkerLost,
)
from penstock_core.status import from_rpc_error
from penstock_core.tracing import Metadata
from penstock_router.fleet import Fleet
from penstock_router.metrics import RouterMetrics
from penstock_router.prompts import PreparedRequest
from penstock_router.routing import Attempt, Routed, Router

_RawCall: TypeAlias = "grpc.aio.UnaryStreamCall[Message, bytes]"

_SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
GENERATE = f"/{_SERVICE.full_name}/Generate"
# GenerateResponse is one oneof, so its first byte is the tag of the event.
_STARTED_TAG = generate_pb2.GenerateResponse.STARTED_FIELD_NUMBER << 3 | 2
_MAX_ATTEMPTS = 3
# The worker reports blocks up to one flush after the tokens they belong to.
_SETTLE_S = 0.25
_RESERVED_S = 3600.0
_NO_DEADLINE_S = 1e9


class Forwarder:
    """Streams of workers to clients."""

    def __init__(
        self, router: Router, fleet: Fleet, metrics: RouterMetrics, clock: Callable[[], float]
    ) -> None:
        self._router = router
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock

    async def generate(
        self, prepared: PreparedRequest, timeout_s: float | None
    ) -> AsyncGenerator[bytes, None]:
        """Serialized ``GenerateResponse`` events of one request.

        Args:
            prepared: the request.
            timeout_s: what the client's deadline leaves; None for no deadline.

        Raises:
            NoWorker: nobody can take it, and no attempt failed otherwise.
            WorkerLost: the worker went away after the first delta.
            PenstockError: what the worker answered.
        """
        deadline = self._clock() + (_NO_DEADLINE_S if timeout_s is None else timeout_s)
        leg, head = await self._first_delta(prepared, deadline)
        try:
            for raw in head:
                yield raw
            async for raw in leg.rest():
                yield raw
        finally:
            leg.close()

    async def _first_delta(
        self, prepared: PreparedRequest, deadline: float
    ) -> tuple["_Leg", list[bytes]]:
        """Try worker after worker until one gives more than ``started``."""
        tried: set[str] = set()
        failure: PenstockError | None = None
        while True:
            attempt = Attempt(len(tried), frozenset(tried), _RESERVED_S, deadline)
            try:
                routed, metadata = await self._router.route(prepared, attempt)
            except NoWorker:
                if failure is not None:
                    raise failure from None
                raise
            leg = self._open(prepared, routed, metadata, deadline)
            try:
                return leg, await leg.head()
            except PenstockError as error:
                leg.close()
                tried.add(routed.worker.worker_id)
                if not goes_elsewhere(error) or len(tried) >= _MAX_ATTEMPTS:
                    raise
                failure = error
                self._metrics.retried(error.slug)
            except BaseException:
                leg.close()
                raise

    def _open(
        self, prepared: PreparedRequest, routed: Routed, metadata: Metadata, deadline: float
    ) -> "_Leg":
        request = prepared.request
        request.tokens.ids = prepared.prompt
        request.lease.CopyFrom(routed.lease)
        if not request.sampling.HasField("seed"):
            request.sampling.seed = routed.record.seed
        left = deadline - self._clock()
        timeout = None if left > _NO_DEADLINE_S / 2 else max(left, 0.0)
        try:
            call: _RawCall = self._fleet.channel(routed.worker).unary_stream(
                GENERATE,
                request_serializer=generate_pb2.GenerateRequest.SerializeToString,
                response_deserializer=_unparsed,
            )(request, timeout=timeout, metadata=metadata)
        except PenstockError:
            self._router.release(routed, status=NoWorker.slug)
            raise
        return _Leg(self._router, routed, call, self._clock)


class _Leg:
    """One attempt on one worker. ``close`` frees what it holds, however it ends."""

    def __init__(
        self, router: Router, routed: Routed, call: _RawCall, clock: Callable[[], float]
    ) -> None:
        self._router = router
        self._routed = routed
        self._call = call
        self._clock = clock
        self._status = "cancelled"
        self._closed = False

    async def head(self) -> list[bytes]:
        """Everything up to the first event that is not ``started``."""
        frames: list[bytes] = []
        while not frames or frames[-1][0] == _STARTED_TAG:
            raw = await self._read(has_begun=False)
            if raw is None:
                raise WorkerLost(f"worker {self._routed.worker.worker_id} ended without an answer")
            if raw:
                frames.append(raw)
        self._routed.worker.breaker.succeeded()
        return frames

    async def rest(self) -> AsyncGenerator[bytes, None]:
        """What comes after the head."""
        while (raw := await self._read(has_begun=True)) is not None:
            yield raw
        self._status = ""

    def close(self) -> None:
        """Cancel what still runs, give back what was reserved, tell the book."""
        if self._closed:
            return
        self._closed = True
        self._call.cancel()
        settle_s = 0.0 if self._status else _SETTLE_S
        self._router.release(self._routed, status=self._status, settle_s=settle_s)

    async def _read(self, *, has_begun: bool) -> bytes | None:
        worker = self._routed.worker
        try:
            raw = await self._call.read()
        except grpc.aio.AioRpcError as error:
            failure = failure_of(error, worker.worker_id, has_begun=has_begun)
            self._status = failure.slug
            if isinstance(failure, WorkerLost) or type(failure) is Unavailable:
                worker.breaker.failed(self._clock())
            raise failure from error
        except asyncio.CancelledError:
            self._status = "cancelled"
            raise
        return raw if isinstance(raw, bytes) else None


def _unparsed(raw: bytes) -> bytes:
    return raw


def failure_of(error: grpc.aio.AioRpcError, worker_id: str, *, has_begun: bool) -> PenstockError:
    """What a failed call means to the client."""
    failure = from_rpc_error(error)
    trailers = dict(error.trailing_metadata() or ())
    is_transport = "grpc-status-details-bin" not in trailers
    # A worker that is being stopped cancels its calls; a client's own cancel never gets here.
    if is_transport and isinstance(failure, Unavailable | Aborted):
        if has_begun or isinstance(failure, Aborted):
            return WorkerLost(f"worker {worker_id} was lost: {failure.message}")
        return Unavailable(f"worker {worker_id} cannot be reached: {failure.message}")
    return failure


def goes_elsewhere(error: PenstockError) -> bool:
    """Whether another worker may do better."""
    return error.retryable and not isinstance(error, QuotaExceeded)
