"""What one worker has to do, from its own ledger and from what was just sent there.

What has no first token yet is its backlog: one of the online classes, and one of BATCH, which gives way
to them and so delays only its own. After its prefill a request decodes, until it has finished. Several
routers see the same ledger, so they agree.
"""

from collections.abc import Iterable

from penstock_router.fleet.backlog import Backlog
from penstock_router.fleet.fit import Ewma, PrefillFit, Utilisation
from penstock_router.fleet.kinds import PRIOR_BASE_S, is_known, unmeasured
from penstock_router.frames import (
    Admitted,
    Finished,
    LedgerEvent,
    LoadReport,
    PrefillDone,
    Progress,
)

RESERVATION_TTL_S = 2.0
_PRIOR_OUTPUT_TOKENS = 64.0
_TRUST_FLOOR = 0.3
_UTILISATION_WINDOW_S = 10.0


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
        self._online, self._batch = Backlog(), Backlog()
        self._decoding: set[str] = set()
        self._serves_online = False
        # Grows with every change, so that a view can be kept until then.
        self.version = 0

    def reserve(
        self, request_id: str, uncached: int, now: float, ttl_s: float, *, is_batch: bool = False
    ) -> None:
        """A request is on its way here and will have to compute this many tokens."""
        self.version += 1
        if request_id not in self._decoding:
            self._backlog(is_batch=is_batch).reserve(request_id, uncached, now, now + ttl_s)

    def release(self, request_id: str) -> None:
        """A reserved request will not come. What the worker admitted, only the worker ends."""
        if self._online.release(request_id) or self._batch.release(request_id):
            self.version += 1

    def reset(self, events: Iterable[LedgerEvent], now: float) -> None:
        """A snapshot: what the worker says is all there is, besides what is on its way."""
        self.version += 1
        self._online.reset()
        self._batch.reset()
        self._decoding.clear()
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
                self._leave(event.request_id)
                if not event.aborted:
                    self.output_tokens.add(event.output_tokens)

    def take_report(self, load: LoadReport, now: float) -> None:
        """The worker's own count: it replaces what was summed up since the one before."""
        self.version += 1
        self.report = load
        of_batch = min(load.queued_batch_tokens, load.queued_prefill_tokens)
        self._online.take_report(load.queued_prefill_tokens - of_batch, now)
        self._batch.take_report(of_batch, now)

    def expire(self, now: float) -> None:
        """Forget reservations of requests that never came."""
        for backlog in (self._online, self._batch):
            if len(backlog) and backlog.expire(now):
                self.version += 1

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

    def backlog_tokens(self, *, for_batch: bool = True) -> int:
        """Prompt tokens to be computed here before a new request's, if that is of class BATCH or not."""
        return self._online.tokens + (self._batch.tokens if for_batch else 0)

    def left_tokens(self, now: float, *, for_batch: bool = True) -> int:
        """Of the backlog, what has not been computed since it was last told of."""
        backlog = self.backlog_tokens(for_batch=for_batch)
        if not backlog:
            return 0
        head = self._online if len(self._online) or not for_batch else self._batch
        _, slope_s = self.prefill_line()
        return max(int(backlog - head.worked_tokens(now, slope_s)), 0)

    def waiting(self, *, for_batch: bool = True) -> int:
        """Requests that have no first token yet."""
        if for_batch:
            return max(len(self._online) + len(self._batch), self.report.waiting)
        return max(len(self._online), self.report.waiting - len(self._batch))

    @property
    def changes_by_itself(self) -> bool:
        """Whether its backlog shrinks as time goes, without an event."""
        return bool(len(self._online) or len(self._batch))

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
        # One that was preempted has decoded before.
        self._decoding.discard(event.request_id)
        self._backlog(is_batch=event.is_batch).admit(event.request_id, uncached, now)

    def _prefill_done(self, event: PrefillDone, now: float) -> None:
        is_batch = event.request_id in self._batch
        self._leave(event.request_id)
        self._decoding.add(event.request_id)
        for backlog in (self._online, self._batch):
            backlog.note_progress(now)
        # BATCH sits out while others prefill: how long it took tells how fast the engine is only where no
        # others are.
        self._serves_online = self._serves_online or not is_batch
        if is_batch and self._serves_online:
            return
        if event.computed_tokens > 0 and event.prefill_s > 0:
            for fit in (self.prefill, self.kind):
                if fit is not None:
                    fit.add(event.computed_tokens, event.cached_tokens, event.prefill_s)
            self._utilisation.add(event.prefill_s, now)

    def _leave(self, request_id: str) -> None:
        self._online.leave(request_id)
        self._batch.leave(request_id)

    def _backlog(self, *, is_batch: bool) -> Backlog:
        return self._batch if is_batch else self._online
