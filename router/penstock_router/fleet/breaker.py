"""A passive circuit breaker: calls that failed keep calls away, one probe lets them back.

Pure; the caller brings the clock.
"""

from dataclasses import dataclass

FAILURES_TO_OPEN = 5
STALLS_TO_OPEN = 3
_FIRST_PAUSE_S = 10.0
_LONGEST_PAUSE_S = 120.0


@dataclass(slots=True)
class Breaker:
    """One worker's breaker: closed, open until a time, then half open for a single probe."""

    _failures: int = 0
    _stalls: int = 0
    _pause_s: float = _FIRST_PAUSE_S
    _open_until: float | None = None
    _probe_until: float = float("-inf")
    _epoch: str = ""

    def is_open(self, now: float) -> bool:
        """Whether requests are kept away now."""
        if self._open_until is None:
            return False
        return now < self._open_until or now < self._probe_until

    def seen(self, epoch: str) -> None:
        """The worker's process is this one; what another one did is no sign against it."""
        if epoch != self._epoch:
            self._epoch = epoch
            self.succeeded()

    def sent(self, now: float) -> None:
        """A request went there; while the breaker is half open, it is the probe."""
        if self._open_until is not None and now >= self._open_until:
            self._probe_until = now + self._pause_s

    def succeeded(self) -> None:
        """A request got its first token."""
        self._failures, self._stalls, self._pause_s = 0, 0, _FIRST_PAUSE_S
        self._open_until, self._probe_until = None, float("-inf")

    def failed(self, now: float) -> None:
        """The worker could not be reached, or was lost."""
        self._failures += 1
        self._count(now, opens=self._failures >= FAILURES_TO_OPEN)

    def stalled(self, now: float) -> None:
        """A stream of the worker stood still."""
        self._stalls += 1
        self._count(now, opens=self._stalls >= STALLS_TO_OPEN)

    def _count(self, now: float, *, opens: bool) -> None:
        if self._open_until is not None:
            if now < self._open_until:
                return  # a stream from before it opened says nothing new
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        elif not opens:
            return
        self._open_until, self._probe_until = now + self._pause_s, float("-inf")
