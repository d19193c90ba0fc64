"""One worker as the router knows it: its picture, its load, its breaker.

Listens to the worker's state stream, joins the ledger with decisions and pending blocks, and gives
decisions a frozen view.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from penstock_core.security.shared_quotas import SharedQuotas
from penstock_router.decisions.book import DecisionBook
from penstock_router.fleet.adapters import Adapters
from penstock_router.fleet.breaker import Breaker
from penstock_router.fleet.distance import Distance
from penstock_router.fleet.kinds import Kinds
from penstock_router.fleet.load import WorkerLoad
from penstock_router.fleet.sync import SyncState, WorkerSync
from penstock_router.frames import (
    Admitted,
    Finished,
    LedgerEvent,
    LoadReport,
    PrefillDone,
    WorkerFacts,
)
from penstock_router.index.index import PrefixIndex
from penstock_router.index.pending import PendingTable
from penstock_router.metrics import RouterMetrics
from penstock_router.policy.demand import PrefixDemand
from penstock_router.policy.facts import WorkerView

CONFIDENCE = {SyncState.LIVE: 1.0, SyncState.SYNCING: 0.7, SyncState.STALE: 0.3}
# Engines tell of a first token and of the blocks behind it on two ways.
_SETTLE_S = 0.25
_ADMITTED_TTL_S = 120.0
# With time alone a backlog shrinks, and a utilisation fades.
_BUSY_VIEW_AGE_S = 0.01
_IDLE_VIEW_AGE_S = 0.1


@dataclass(frozen=True, slots=True)
class Zones:
    """Where the router stands, and what the way to another zone costs in seconds."""

    own: str = ""
    penalty_s: float = 0.0

    def network_s(self, facts: WorkerFacts | None) -> float:
        """The way to a worker; an unknown zone is as near as any."""
        if facts is None or not self.own or facts.zone in ("", self.own):
            return 0.0
        return self.penalty_s


class Picture:
    """What all workers of a router share: one index, one pending table, one book, one clock."""

    def __init__(
        self, book: DecisionBook, metrics: RouterMetrics, clock: Callable[[], float]
    ) -> None:
        self.index = PrefixIndex()
        self.pending = PendingTable()
        self.demand = PrefixDemand()
        self.kinds = Kinds()
        self.book = book
        self.metrics = metrics
        self.clock = clock
        self.zones = Zones()
        self.quotas = SharedQuotas(clock)


class _KeptView(NamedTuple):
    """A view, what it was made of, and how long it may serve."""

    view: WorkerView
    key: tuple[int, int, str, SyncState, str]
    until: float


class TrackedWorker:
    """A worker at one address, over its restarts."""

    def __init__(self, endpoint: str, picture: Picture) -> None:
        self._picture = picture
        self.endpoint = endpoint
        self.sync = WorkerSync(picture.index, self)
        self.load = WorkerLoad()
        self.adapters = Adapters()
        self.breaker = Breaker()
        self.distance = Distance()
        self._views: dict[bool, _KeptView] = {}

    @property
    def facts(self) -> WorkerFacts | None:
        """Who it is; None until it has said so."""
        return self.sync.facts

    @property
    def worker_id(self) -> str:
        """Its id; empty until it is known."""
        return self.sync.facts.worker_id if self.sync.facts else ""

    def why_not(self, now: float) -> str:
        """Why no request can go there; empty if it can."""
        return self._why_not(self.sync.state(now), now)

    def _why_not(self, state: SyncState, now: float) -> str:
        if self.sync.facts is not None:
            self.breaker.seen(self.sync.facts.epoch)
        if state in (SyncState.COLD, SyncState.DEAD):
            return f"its state is {state.value}"
        if self.load.report.draining:
            return "it is draining"
        if not self.load.report.serving:
            return "its engine failed"
        return "its breaker is open" if self.breaker.is_open(now) else ""

    def view(
        self, now: float, excluded_because: str = "", *, for_batch: bool = False
    ) -> WorkerView:
        """What a decision sees of it; the same object while nothing has changed.

        Work of class BATCH gives way to others, so only for its own class is it in the way.
        """
        state = self.sync.state(now)
        why = excluded_because or self._why_not(state, now)
        epoch = self.sync.facts.epoch if self.sync.facts else ""
        key = (self.load.version, self.sync.seq, epoch, state, why)
        kept = self._views.get(for_batch)
        if kept is None or key != kept.key or now >= kept.until:
            age_s = _BUSY_VIEW_AGE_S if self.load.waiting() else _IDLE_VIEW_AGE_S
            view = self._look(state, why, now, for_batch=for_batch)
            kept = self._views[for_batch] = _KeptView(view, key, now + age_s)
        return kept.view

    def _look(self, state: SyncState, why: str, now: float, *, for_batch: bool) -> WorkerView:
        load, facts = self.load, self.sync.facts
        self._know_kind()
        base_s, slope_s = load.prefill_line()
        report = load.report
        return WorkerView(
            worker_id=self.worker_id,
            # Known from the beginning of a snapshot on; leases must name it even then.
            epoch=facts.epoch if facts else "",
            seq=self.sync.seq,
            sync_state=state.value,
            confidence=CONFIDENCE.get(state, 0.0),
            trust=load.trust_factor,
            network_s=self.distance.seconds + self._picture.zones.network_s(facts),
            backlog_tokens=load.left_tokens(now, for_batch=for_batch),
            running=load.running(),
            waiting=load.waiting(for_batch=for_batch),
            base_s=base_s,
            slope_s=slope_s,
            pair_s=load.speed.pair_s,
            utilisation=load.utilisation(now),
            step_s=report.step_s / max(report.tokens_per_step, 1.0),
            output_tokens=load.output_tokens.value,
            max_batch=facts.max_batch if facts else 0,
            used_blocks=report.used_blocks,
            capacity_blocks=facts.capacity_blocks if facts else 0,
            block_tokens=facts.block_tokens if facts else 1,
            excluded_because=why,
        )

    def stored(self, hashes: bytes) -> None:
        """Blocks are there now."""
        self._picture.pending.stored(self.worker_id, hashes)

    def ledger(self, events: Sequence[LedgerEvent]) -> None:
        """Lines of the ledger."""
        now, pending = self._picture.clock(), self._picture.pending
        self._know_kind()
        for event in events:
            self.load.apply(event, now)
            if isinstance(event, Admitted):
                pending.keep(event.request_id, now + _ADMITTED_TTL_S)
                self._picture.quotas.began(event.request_id, event.prompt_tokens)
            elif isinstance(event, PrefillDone | Finished):
                pending.settle(event.request_id, now + _SETTLE_S)
                self._join(event)
            if isinstance(event, Finished):
                tokens, aborted = event.output_tokens, event.aborted
                self._picture.quotas.ended(event.request_id, tokens, aborted=aborted)

    def reset(self, events: Sequence[LedgerEvent]) -> None:
        """The ledger as a whole; what was known before is void."""
        self.load.reset((), self._picture.clock())
        if not events:
            self._picture.pending.drop_worker(self.worker_id)
        self.ledger(events)

    def report(self, load: LoadReport) -> None:
        """What the worker does now."""
        self.load.take_report(load, self._picture.clock())

    def _know_kind(self) -> None:
        """A worker may come back as another kind: with another model, say."""
        if self.sync.facts is not None:
            self.load.kind = self._picture.kinds.of(self.sync.facts)

    def _join(self, event: PrefillDone | Finished) -> None:
        outcome = self._picture.book.on_ledger(self.worker_id, event)
        if outcome is not None and isinstance(event, PrefillDone):
            predicted = outcome.predicted_cached_tokens
            self.load.observe_hit(predicted, event.cached_tokens)
            self.load.observe_ttft(outcome.predicted_ttft_s, event.ttft_s)
            self._picture.metrics.hit(self.worker_id, predicted, event.cached_tokens)
