"""One attempt of a proxied request on one worker: its call, what it reserved, how it ended."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from penstock_core.errors import PenstockError, Unavailable, WorkerLost
from penstock_core.rpc.stalls import STALL_FLOOR_S, StallWatch
from penstock_core.telemetry import semconv
from penstock_router.fleet.sync import SyncState
from penstock_router.proxy.emitted import STARTED_TAG
from penstock_router.relay.frames import FrameStream
from penstock_router.routing import Routed, Router

# The worker reports blocks up to one flush after the tokens they belong to.
_SETTLE_S = 0.25


@dataclass(frozen=True, slots=True)
class Moves:
    """When a stream leaves a worker that is silent.

    ``may`` tells whether another worker could go on; ``stall_s`` is the least silence that counts.
    """

    may: Callable[[], bool]
    stall_s: float = STALL_FLOOR_S


@dataclass(frozen=True, slots=True)
class Call:
    """A call that has begun, and the span that lasts as long."""

    stream: FrameStream
    span: trace.Span


class Leg:
    """Frames of one worker. ``close`` frees what it holds, however it ends."""

    def __init__(
        self,
        router: Router,
        routed: Routed,
        call: "Call",
        clock: Callable[[], float],
        moves: "Moves",
    ) -> None:
        self._router = router
        self._routed = routed
        self._call = call.stream
        self._span = call.span
        self._clock = clock
        self._may_move = moves.may
        self._watch = StallWatch(self._give_up, floor_s=moves.stall_s)
        self._status = "cancelled"
        self._has_begun = False
        self._gave_up = ""
        self._closed = False

    @property
    def worker_id(self) -> str:
        """Who serves it."""
        return self._routed.worker.worker_id

    async def head(self) -> list[bytes]:
        """Everything up to the first event that is not ``started``."""
        frames: list[bytes] = []
        while not frames or frames[-1][0] == STARTED_TAG:
            raw = await self.read()
            if raw is None:
                raise WorkerLost(f"worker {self.worker_id} ended without an answer")
            if raw:
                frames.append(raw)
        self._has_begun = True
        self._routed.worker.breaker.succeeded()
        return frames

    async def read(self) -> bytes | None:
        """The next frame; None at the end.

        Raises:
            PenstockError: what the call failed with; WorkerLost if it stood still.
        """
        self._watch.waits()
        try:
            raw = await self._call.read(has_begun=self._has_begun)
        except PenstockError as error:
            self._failed(error)
            raise
        except asyncio.CancelledError:
            if not self._gave_up:
                raise
            raise self._failed(WorkerLost(self._gave_up)) from None
        if raw is not None:
            self._watch.got()
        return raw

    def ended_well(self) -> None:
        """All of it came."""
        self._status = ""

    def close(self) -> None:
        """Cancel what still runs, give back what was reserved, tell the book."""
        if self._closed:
            return
        self._closed = True
        self._watch.close()
        self._call.cancel()
        settle_s = 0.0 if self._status else _SETTLE_S
        self._router.release(self._routed, status=self._status, settle_s=settle_s)
        self._span.set_attribute(semconv.STATUS, self._status or "OK")
        if self._status not in ("", "cancelled"):
            self._span.set_status(Status(StatusCode.ERROR, self._status))
        self._span.end()

    def _failed(self, failure: PenstockError) -> PenstockError:
        self._status = failure.slug
        if isinstance(failure, WorkerLost) or type(failure) is Unavailable:
            breaker, now = self._routed.worker.breaker, self._clock()
            if self._gave_up:
                breaker.stalled(now)
            else:
                breaker.failed(now)
        return failure

    def _give_up(self) -> bool:
        """Leave a worker that stands still. Its late tokens find nobody."""
        state = self._routed.worker.sync.state(self._clock())
        # Before the first token silence is no sign: others may go first. A dead worker is.
        if not self._has_begun and state is not SyncState.DEAD:
            return False
        if not self._may_move():
            return False
        self._gave_up = f"worker {self.worker_id} stands still"
        self._call.cancel()
        return True
