"""Notices a stream that stands still: nothing for ten times its usual pace, and at least five seconds.

Costs a stream two looks at the clock a message and two timers a second, which all streams share. Router and client use the same.
"""

import asyncio
from collections.abc import Callable

STALL_FLOOR_S = 5.0
STALL_FACTOR = 10.0
_TICK_S = 0.5


class StallWatch:
    """Watches one stream from its first delta on.

    Only waiting for the worker counts: a client that reads slowly stalls nobody.
    """

    def __init__(
        self,
        give_up: Callable[[], bool],
        *,
        floor_s: float = STALL_FLOOR_S,
        tick_s: float = _TICK_S,
    ) -> None:
        """Args: ``give_up`` ends the stream, or says False to be asked again (nobody else is there)."""
        self._give_up = give_up
        self._floor_s = floor_s
        self._tick_s = min(tick_s, floor_s / 2)
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._waiting_since: float | None = None
        self._waited_s = 0.0
        self._messages = 0
        self._timer = self._next()

    @property
    def limit_s(self) -> float:
        """Longest silence that is taken for work, in seconds."""
        return max(self._floor_s, STALL_FACTOR * self._waited_s / max(self._messages, 1))

    def waits(self) -> None:
        """The next message is being waited for."""
        self._waiting_since = self._clock()

    def got(self) -> None:
        """It came."""
        if self._waiting_since is not None:
            self._waited_s += self._clock() - self._waiting_since
            self._waiting_since = None
        self._messages += 1

    def close(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _look(self) -> None:
        since = self._waiting_since
        if since is not None and self._clock() - since > self.limit_s and self._give_up():
            return
        self._timer = self._next()

    def _next(self) -> asyncio.TimerHandle:
        # At the same times for all streams: waking up costs more than looking at a stream.
        tick = self._clock() // self._tick_s + 1
        return self._loop.call_at(tick * self._tick_s, self._look)
