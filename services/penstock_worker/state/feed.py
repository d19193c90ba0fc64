"""Carries the state log to subscribers: follows the engine, flushes, keeps the heartbeat.

Each subscriber reads the log's ring at its own pace from its own position. One that falls out of
the ring gets a snapshot; nobody ever slows the engine or another subscriber.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from penstock.worker.v1 import state_pb2
from penstock_core.errors import EngineFailed, Overloaded
from penstock_engine.api import Engine, EngineState
from penstock_worker import translate
from penstock_worker.accounting.metrics import EngineGauges
from penstock_worker.state.log import StateLog

MAX_SUBSCRIBERS = 64


@dataclass(frozen=True, slots=True)
class FeedTiming:
    """Seconds: least time between deltas, between reports of progress, between heartbeats.

    ``cache_s`` is how long changes of the cache alone may wait for others. A delta costs a router as
    much as a message of a forwarded stream, and every running request fills blocks: what they are
    good for begins with the next prompt, while the ledger steers the next decision.
    """

    delta_s: float = 0.005
    progress_s: float = 0.1
    heartbeat_s: float = 1.0
    cache_s: float = 0.020


class StateFeed:
    """The state of one worker, for any number of subscribers."""

    def __init__(
        self, log: StateLog, engine: Engine, gauges: EngineGauges, timing: FeedTiming
    ) -> None:
        self._log = log
        self._engine = engine
        self._gauges = gauges
        self._timing = timing
        self._noted = asyncio.Event()
        self._published = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._subscribers = 0
        self._was_busy = False
        self._closed = False
        self.health: state_pb2.WorkerHealth.ValueType = state_pb2.WORKER_HEALTH_SERVING

    async def run(self) -> None:
        """Follow the engine until cancelled. Raises EngineFailed when the engine does."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_cache())
                tasks.create_task(self._flush_often())
                tasks.create_task(self._report_progress())
        except ExceptionGroup as group:
            self.set_health(state_pb2.WORKER_HEALTH_FAILED)
            self._publish()
            raise group.exceptions[0] from None
        finally:
            if self._later is not None:
                self._later.cancel()

    def note(self, event: state_pb2.LedgerEvent) -> None:
        """Add a line to the load ledger."""
        self._log.note(event)
        self._noted.set()

    def load(self) -> state_pb2.WorkerLoad:
        """What the worker does now."""
        capacity = self._engine.info().capacity_blocks
        return translate.load(self._engine.state(), capacity, self.health)

    def set_health(self, health: state_pb2.WorkerHealth.ValueType) -> None:
        """Change the worker's health and tell everybody."""
        self.health = health
        self.note(self._progress())

    def close(self) -> None:
        """End every subscription after what is noted so far."""
        self._closed = True
        self._publish()

    async def watch(self, epoch: str, resume_after_seq: int) -> AsyncGenerator[bytes, None]:
        """Frames for one subscriber, from where it left off if that can be.

        Raises:
            Overloaded: there are too many subscribers.
        """
        if self._subscribers >= MAX_SUBSCRIBERS:
            raise Overloaded(f"more than {MAX_SUBSCRIBERS} subscribers", retry_after_s=1.0)
        self._subscribers += 1
        try:
            position = resume_after_seq or None if epoch == self._log.epoch else None
            beat_at = self._now() + self._timing.heartbeat_s
            while True:
                frames, position = self._frames_after(position)
                for frame in frames:
                    yield frame
                if self._log.seq > position:
                    continue  # the subscriber was slow to take these; there is more already
                # Only to one that has everything: a heartbeat ahead of it would mean a lost frame.
                if self._now() >= beat_at:
                    beat_at = self._now() + self._timing.heartbeat_s
                    yield self._log.heartbeat(self.load())
                    continue
                if self._closed:
                    return
                await self._wait(beat_at)
        finally:
            self._subscribers -= 1

    def _frames_after(self, position: int | None) -> tuple[list[bytes], int]:
        """Frames that bring a subscriber from a position (None: it knows nothing) to now."""
        frames = self._log.since(position) if position is not None else None
        if frames is None:
            self._publish()
            frames = self._log.snapshot()
        return frames, self._log.seq

    async def _wait(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._published.wait()
        except TimeoutError:
            return

    def _publish(self) -> None:
        if self._log.flush() or self._closed:
            self._published.set()
            self._published = asyncio.Event()

    async def _follow_cache(self) -> None:
        async for events in self._engine.kv_events():
            self._log.apply(events)
            if self._later is None:
                loop = asyncio.get_running_loop()
                self._later = loop.call_later(self._timing.cache_s, self._cache_is_due)

    def _cache_is_due(self) -> None:
        self._later = None
        self._noted.set()

    async def _flush_often(self) -> None:
        while True:
            await self._noted.wait()
            self._noted.clear()
            self._publish()
            await asyncio.sleep(self._timing.delta_s)

    async def _report_progress(self) -> None:
        while True:
            state = self._engine.state()
            self._gauges.update(state)
            if state.failed:
                raise EngineFailed("the engine has failed")
            is_busy = bool(state.running or state.waiting)
            if is_busy or self._was_busy:
                self.note(self._progress(state))
            self._was_busy = is_busy
            await asyncio.sleep(self._timing.progress_s)

    def _progress(self, state: EngineState | None = None) -> state_pb2.LedgerEvent:
        capacity = self._engine.info().capacity_blocks
        load = translate.load(state or self._engine.state(), capacity, self.health)
        return state_pb2.LedgerEvent(progress=state_pb2.Progress(load=load))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
