"""Keeps one worker's picture up to date: watches its state, and watches again when that breaks."""

import asyncio
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from penstock.worker.v1 import worker_service_pb2, worker_service_pb2_grpc
from penstock_core.errors import PenstockError, Unauthenticated
from penstock_core.rpc.status import from_rpc_error
from penstock_core.telemetry.tracing import Metadata
from penstock_router.fleet import translate
from penstock_router.fleet.changes import Changes
from penstock_router.fleet.sync import SyncState
from penstock_router.fleet.tracked import Picture, TrackedWorker

logger = logging.getLogger(__name__)

# Five heartbeats: long enough for a worker that computes, short enough to notice one that hangs.
_SILENCE_S = 5.0
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 2.0
_FORGET_AFTER_S = 60.0
# No decision waits longer than this for the index.
_SLICE_S = 0.001


@dataclass(frozen=True, slots=True)
class Subscription:
    """A connection to a worker, and who asks there."""

    channel: grpc.aio.Channel
    subscriber_id: str
    credentials: Metadata = ()


class Follower:
    """Follows one worker until cancelled."""

    def __init__(
        self,
        worker: TrackedWorker,
        subscription: Subscription,
        picture: Picture,
        changes: Changes,
    ) -> None:
        self._worker = worker
        self._stub = worker_service_pb2_grpc.WorkerServiceStub(subscription.channel)
        self._subscription = subscription
        self._picture = picture
        self._changes = changes
        self._state = SyncState.COLD

    async def run(self) -> None:
        """Watch, for ever. What the worker held is forgotten at the end."""
        backoff = _FIRST_BACKOFF_S
        try:
            while True:
                was_live = await self._watch_once()
                self._note_state()
                backoff = _FIRST_BACKOFF_S if was_live else min(backoff * 2, _LONGEST_BACKOFF_S)
                if self._worker.sync.silence_s(self._picture.clock()) > _FORGET_AFTER_S:
                    self._worker.sync.forget()
                    await self._run_slices(self._worker.sync.sweep())
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
        finally:
            self._worker.sync.forget()
            self._changes.notify()
            await self._run_slices(self._worker.sync.sweep())

    async def _watch_once(self) -> bool:
        """Follow one stream to its end. Whether the picture was right at any time."""
        sync = self._worker.sync
        epoch, seq = sync.connecting()
        request = worker_service_pb2.WatchStateRequest(
            subscriber_id=self._subscription.subscriber_id, epoch=epoch, resume_after_seq=seq
        )
        call = self._stub.WatchState(request, metadata=self._subscription.credentials)
        frames, was_live = 0, False
        try:
            # Put off with each frame: one of its own for each would cost as much as taking a frame in.
            async with asyncio.timeout(_SILENCE_S) as silence:
                while not sync.out_of_step:
                    message = await call.read()
                    if not isinstance(message, worker_service_pb2.WatchStateResponse):  # the end
                        break
                    silence.reschedule(asyncio.get_running_loop().time() + _SILENCE_S)
                    frames += 1
                    await self._take(message)
                    was_live = was_live or self._state is SyncState.LIVE
        except TimeoutError:
            logger.warning("worker %s is silent", self._name())
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            # A wrong secret stays wrong; somebody must hear of it.
            level = logging.WARNING if isinstance(failure, Unauthenticated) else logging.DEBUG
            logger.log(level, "watching %s ended: %s", self._name(), failure)
        except PenstockError as error:
            logger.warning("watching %s: %s", self._name(), error)
        finally:
            call.cancel()
        if sync.out_of_step:
            logger.warning("worker %s is out of step: %s", self._name(), sync.out_of_step)
        else:
            sync.lost(refused=frames == 0)
        return was_live

    async def _take(self, message: worker_service_pb2.WatchStateResponse) -> None:
        frame = translate.frame(message)
        if frame is not None:
            await self._run_slices(self._worker.sync.apply(frame, self._picture.clock()))
        self._note_state()
        self._changes.notify()

    async def _run_slices(self, slices: Iterator[None]) -> None:
        began = time.perf_counter()
        for _ in slices:
            if time.perf_counter() - began > _SLICE_S:
                await asyncio.sleep(0)
                began = time.perf_counter()

    def _note_state(self) -> None:
        state = self._worker.sync.state(self._picture.clock())
        if state is not self._state:
            logger.info("worker %s: %s -> %s", self._name(), self._state.value, state.value)
            self._state = state
            self._changes.notify()

    def _name(self) -> str:
        return self._worker.worker_id or self._worker.endpoint
