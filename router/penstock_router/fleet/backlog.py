"""Prompts that a worker has still to compute, of the online classes or of BATCH.

A request is *reserved* when it is routed, *admitted* when the worker says so, and leaves with its
first token. Reservations expire: a request that never arrived must not weigh. The worker's report
of queued tokens is the base; requests that the report cannot have counted yet are added to it.
Pure; the caller brings the clock.
"""

from dataclasses import dataclass
from enum import Enum, auto

# A report may have been on its way while the request was.
_REPORT_LAG_S = 0.05


class _Phase(Enum):
    RESERVED = auto()
    ADMITTED = auto()


@dataclass(slots=True)
class _Entry:
    uncached: int
    phase: _Phase
    since: float
    expires: float = float("inf")
    # Whether the worker's last report of queued prefill tokens includes it.
    reported: bool = False


class Backlog:
    """Requests without a first token, in the order in which they came."""

    def __init__(self) -> None:
        self._ahead: dict[str, _Entry] = {}
        self._reported_tokens = 0
        # Since when the prompt at the head is computed, as far as is known.
        self._working_since = 0.0

    def __len__(self) -> int:
        """Requests."""
        return len(self._ahead)

    def __contains__(self, request_id: str) -> bool:
        """Whether it is one of them."""
        return request_id in self._ahead

    def reserve(self, request_id: str, uncached: int, now: float, expires: float) -> None:
        """A request is on its way."""
        if not self._ahead:
            self._working_since = now
        self._ahead.setdefault(request_id, _Entry(uncached, _Phase.RESERVED, now, expires))

    def release(self, request_id: str) -> bool:
        """A reserved request will not come; whether it was. What was admitted, only the worker ends."""
        entry = self._ahead.get(request_id)
        if entry is None or entry.phase is not _Phase.RESERVED:
            return False
        del self._ahead[request_id]
        return True

    def reset(self) -> None:
        """Only what is on its way is left."""
        self._ahead = {i: e for i, e in self._ahead.items() if e.phase is _Phase.RESERVED}
        self._reported_tokens = 0

    def take_report(self, queued_tokens: int, now: float) -> None:
        """The worker's own count: it replaces what was summed up since the one before."""
        self._reported_tokens = queued_tokens
        self._working_since = now
        for entry in self._ahead.values():
            arrived = entry.phase is _Phase.ADMITTED or now - entry.since > _REPORT_LAG_S
            entry.reported = arrived and queued_tokens > 0

    def expire(self, now: float) -> bool:
        """Forget reservations of requests that never came; whether there were any."""
        late = [i for i, e in self._ahead.items() if e.expires <= now]
        for request_id in late:
            del self._ahead[request_id]
        return bool(late)

    def admit(self, request_id: str, uncached: int, now: float) -> None:
        """The worker computes it, or will."""
        if not any(e.phase is _Phase.ADMITTED for e in self._ahead.values()):
            self._working_since = now
        entry = self._ahead.setdefault(request_id, _Entry(uncached, _Phase.ADMITTED, now))
        entry.uncached, entry.phase, entry.expires = uncached, _Phase.ADMITTED, float("inf")

    def leave(self, request_id: str) -> None:
        """It has its first token, or ended without one."""
        entry = self._ahead.pop(request_id, None)
        if entry is None or not entry.reported:
            return
        others = sum(e.uncached for e in self._ahead.values() if e.reported)
        # The report may have counted part of it as done already: never take from the others.
        self._reported_tokens = max(
            self._reported_tokens - entry.uncached, min(self._reported_tokens, others)
        )

    def note_progress(self, now: float) -> None:
        """A prompt was finished: the next is begun."""
        self._working_since = now

    @property
    def tokens(self) -> int:
        """Prompt tokens to be computed before a new request's."""
        return self._reported_tokens + sum(
            e.uncached for e in self._ahead.values() if not e.reported
        )

    def worked_tokens(self, now: float, slope_s: float) -> float:
        """Of them, what has been computed since it was last told of: at most one prompt."""
        if not self._ahead:
            return 0.0
        head = min(self._ahead.values(), key=lambda e: (e.phase is _Phase.RESERVED, e.since))
        return min((now - self._working_since) / max(slope_s, 1e-9), head.uncached)
