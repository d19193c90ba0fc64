"""What one worker has to do, from its own ledger and from what was just sent there.

A request is *reserved* when it is routed, *admitted* when the worker says so, *decoding* after its
prefill and gone when finished. Reservations expire: a request that never arrived must not weigh.
The worker's report of queued prefill tokens is the base of the backlog; requests that the report
cannot have counted yet are added to it. Several routers see the same ledger, so they agree.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from penstock_router.fit import Ewma, PrefillFit, Utilisation
from penstock_router.frames import (
    Admitted,
    Finished,
    LedgerEvent,
    LoadReport,
    PrefillDone,
    Progress,
)
from penstock_router.kinds import PRIOR_BASE_S, is_known, unmeasured

RESERVATION_TTL_S = 2.0
# A report may have been on its way while the request was.
_REPORT_LAG_S = 0.05
_PRIOR_OUTPUT_TOKENS = 64.0
_TRUST_FLOOR = 0.3
_UTILISATION_WINDOW_S = 10.0


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


class WorkerLoad:
    """One worker's backlog, batch and learned speeds."""

    def __init__(self) -> None:
        self.report = LoadReport()
        self.prefill = unmeasured()
        # Measurements of all workers of its kind, its own among them; None until its kind is known.
        self.kind: PrefillFit | None = None
        self.trust = Ewma(1.0, 0.05)
        self.output_tokens = Ewma(_PRIOR_OUTPUT_TOKENS)
        self.ttft_error = Ewma(0.0)
        self._utilisation = Utilisation(_UTILISATION_WINDOW_S)
        # Those without a first token yet, and the ids of those that decode.
        self._ahead: dict[str, _Entry] = {}
        self._decoding: set[str] = set()
        self._reported_tokens = 0
        # Since when the prompt at the head is computed, as far as is known.
        self._working_since = 0.0
        # Grows with every change, so that a view can be kept until then.
        self.version = 0

    def reserve(self, request_id: str, uncached: int, now: float, ttl_s: float) -> None:
        """A request is on its way here and will have to compute this many tokens."""
        self.version += 1
        if not self._ahead:
            self._working_since = now
        if request_id not in self._decoding:
            entry = _Entry(uncached, _Phase.RESERVED, now, now + ttl_s)
            self._ahead.setdefault(request_id, entry)

    def release(self, request_id: str) -> None:
        """A reserved request will not come. What the worker admitted, only the worker ends."""
        entry = self._ahead.get(request_id)
        if entry is not None and entry.phase is _Phase.RESERVED:
            self.version += 1
            del self._ahead[request_id]

    def reset(self, events: Iterable[LedgerEvent], now: float) -> None:
        """A snapshot: what the worker says is all there is, besides what is on its way."""
        self.version += 1
        self._ahead = {i: e for i, e in self._ahead.items() if e.phase is _Phase.RESERVED}
        self._decoding.clear()
        self._reported_tokens = 0
        for event in events:
            self.apply(event, now)

    def apply(self, event: LedgerEvent, now: float) -> None:
        """One line of the ledger."""
        self.version += 1
        match event:
            case Progress(load):
                self.take_report(load, now)
            case Admitted():
                self._admitted(event, now)
            case PrefillDone():
                self._prefill_done(event, now)
            case Finished():
                self._decoding.discard(event.request_id)
                self._leaves_backlog(event.request_id)
                if not event.aborted:
                    self.output_tokens.add(event.output_tokens)

    def take_report(self, load: LoadReport, now: float) -> None:
        """The worker's own count: it replaces what was summed up since the one before."""
        self.version += 1
        self.report = load
        self._reported_tokens = load.queued_prefill_tokens
        self._working_since = now
        for entry in self._ahead.values():
            arrived = entry.phase is _Phase.ADMITTED or now - entry.since > _REPORT_LAG_S
            entry.reported = arrived and load.queued_prefill_tokens > 0

    def expire(self, now: float) -> None:
        """Forget reservations of requests that never came."""
        if not self._ahead:
            return
        for request_id in [i for i, e in self._ahead.items() if e.expires <= now]:
            self.version += 1
            del self._ahead[request_id]

    def observe_hit(self, predicted: int, actual: int) -> None:
        """What was promised against what was there."""
        self.version += 1
        if predicted > 0:
            self.trust.add(min(actual / predicted, 1.0))

    def observe_ttft(self, predicted_s: float, actual_s: float) -> None:
        """What was foretold against what was measured."""
        self.ttft_error.add(abs(actual_s - predicted_s))

    @property
    def trust_factor(self) -> float:
        """Smoothed actual over predicted cached tokens, floored so that it can recover."""
        return max(self.trust.value, _TRUST_FLOOR)

    def backlog_tokens(self) -> int:
        """Prompt tokens to be computed here before a new request's."""
        ahead = self._ahead.values()
        return self._reported_tokens + sum(e.uncached for e in ahead if not e.reported)

    def worked_tokens(self, now: float) -> float:
        """Of the backlog, what has been computed since it was last told of: at most one prompt."""
        if not self._ahead:
            return 0.0
        head = min(self._ahead.values(), key=lambda e: (e.phase is _Phase.RESERVED, e.since))
        _, slope_s = self.prefill_line()
        return min((now - self._working_since) / max(slope_s, 1e-9), head.uncached)

    def waiting(self) -> int:
        """Requests that have no first token yet."""
        return max(len(self._ahead), self.report.waiting)

    @property
    def changes_by_itself(self) -> bool:
        """Whether its backlog shrinks as time goes, without an event."""
        return bool(self._ahead)

    def running(self) -> int:
        """Requests that decode."""
        return len(self._decoding)

    def utilisation(self, now: float) -> float:
        """Share of the time spent in prefill."""
        return self._utilisation.value(now)

    @property
    def speed(self) -> PrefillFit:
        """What foretells its prefills: its own measurements, or those of its kind while it has few.

        Else whoever was measured first would look fast beside the others' priors, and on an idle fleet
        nobody else would ever be asked.
        """
        if not is_known(self.prefill) and self.kind is not None and is_known(self.kind):
            return self.kind
        return self.prefill

    def prefill_line(self) -> tuple[float, float]:
        """(base seconds, seconds a token) of a prefill; the worker's own rate until enough is seen."""
        speed, rate = self.speed, self.report.prefill_tokens_per_s
        if not is_known(speed) and rate > 0:
            return PRIOR_BASE_S, 1 / rate
        return speed.base_s, speed.slope_s

    def _admitted(self, event: Admitted, now: float) -> None:
        uncached = event.prompt_tokens - event.cached_tokens
        if not any(e.phase is _Phase.ADMITTED for e in self._ahead.values()):
            self._working_since = now
        # One that was preempted has decoded before.
        self._decoding.discard(event.request_id)
        entry = self._ahead.get(event.request_id)
        if entry is None:
            entry = self._ahead[event.request_id] = _Entry(uncached, _Phase.ADMITTED, now)
        entry.uncached, entry.phase, entry.expires = uncached, _Phase.ADMITTED, float("inf")

    def _prefill_done(self, event: PrefillDone, now: float) -> None:
        self._leaves_backlog(event.request_id)
        self._decoding.add(event.request_id)
        self._working_since = now
        if event.computed_tokens > 0 and event.prefill_s > 0:
            for fit in (self.prefill, self.kind):
                if fit is not None:
                    fit.add(event.computed_tokens, event.cached_tokens, event.prefill_s)
            self._utilisation.add(event.prefill_s, now)

    def _leaves_backlog(self, request_id: str) -> None:
        entry = self._ahead.pop(request_id, None)
        if entry is None or not entry.reported:
            return
        others = sum(e.uncached for e in self._ahead.values() if e.reported)
        # The report may have counted part of it as done already: never take from the others.
        self._reported_tokens = max(
            self._reported_tokens - entry.uncached, min(self._reported_tokens, others)
        )
