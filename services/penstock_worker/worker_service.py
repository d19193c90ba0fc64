"""``WorkerService``: what routers and operators ask of a worker besides inference."""

import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any

import grpc

from penstock.worker.v1 import (
    relay_pb2,
    state_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from penstock_core.errors import Aborted, InvalidRequest
from penstock_engine.api import Engine
from penstock_worker.intake.running import DrainResult, RequestTable
from penstock_worker.relay.relay import Relays
from penstock_worker.state.feed import StateFeed

MAX_GRACE_S = 24 * 3600.0
_Context = grpc.aio.ServicerContext[Any, Any]


class WorkerServicer(worker_service_pb2_grpc.WorkerServiceServicer):
    """Serves one worker's state."""

    def __init__(
        self,
        info: state_pb2.WorkerInfo,
        engine: Engine,
        feed: StateFeed,
        requests: RequestTable,
        relays: Relays,
        drain: Callable[[float], Awaitable[DrainResult]],
    ) -> None:
        self._info = info
        self._engine = engine
        self._feed = feed
        self._requests = requests
        self._relays = relays
        self._drain = drain

    async def WatchState(  # type: ignore[override]  # noqa: N802 - frames are serialized already
        self, request: worker_service_pb2.WatchStateRequest, context: _Context
    ) -> AsyncGenerator[bytes, None]:
        """Stream the state: a snapshot or a replay, then deltas and heartbeats."""
        watch = self._feed.watch(request.epoch, request.resume_after_seq)
        async with contextlib.aclosing(watch) as frames:
            async for frame in frames:
                yield frame

    async def GetWorker(  # noqa: N802
        self, request: worker_service_pb2.GetWorkerRequest, context: _Context
    ) -> worker_service_pb2.GetWorkerResponse:
        """Describe the worker and its load now."""
        return worker_service_pb2.GetWorkerResponse(
            info=self._info, load=self._feed.load(), request_ids=self._requests.ids
        )

    async def Abort(  # noqa: N802
        self, request: worker_service_pb2.AbortRequest, context: _Context
    ) -> worker_service_pb2.AbortResponse:
        """End a request: its samples finish as aborted, and what it held is free."""
        known = self._engine.abort(request.request_id) or self._requests.evict(
            request.request_id, Aborted("the request was aborted")
        )
        return worker_service_pb2.AbortResponse(aborted=known)

    async def Drain(  # noqa: N802
        self, request: worker_service_pb2.DrainRequest, context: _Context
    ) -> worker_service_pb2.DrainResponse:
        """Refuse new requests and wait for the running ones, up to the grace period."""
        grace_s = request.grace_s
        if not (math.isfinite(grace_s) and 0 <= grace_s <= MAX_GRACE_S):
            raise InvalidRequest(f"grace_s lies in [0, {MAX_GRACE_S:g}]", field="grace_s")
        result = await self._drain(grace_s)
        return worker_service_pb2.DrainResponse(finished=result.finished, aborted=result.aborted)

    def Relay(  # type: ignore[override]  # noqa: N802 - messages are serialized already
        self, requests: AsyncIterable[relay_pb2.RelayRequest], context: _Context
    ) -> AsyncGenerator[bytes, None]:
        """Serve many calls of ``Generate`` on one stream."""
        return self._relays.responses(requests)
