"""The router's instruments. Names live in ``penstock_core.telemetry.semconv``."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from penstock_core.errors import Overloaded
from penstock_core.telemetry import semconv as sc
from penstock_core.telemetry.deferred import Deferred


class RouterMetrics:
    """What the router counts. Nothing here is touched per token."""

    def __init__(self) -> None:
        meter = metrics.get_meter("penstock.router")
        self._meter = meter
        decision = meter.create_histogram(
            sc.DECISION_DURATION, unit="s", description="Hashing, matching and deciding."
        )
        queue = meter.create_histogram(
            sc.QUEUE_DURATION, unit="s", description="Waiting in the router for a worker."
        )
        # What comes with each request.
        deferred = Deferred(meter)
        self._decision = deferred.measure(decision.record)
        self._queue = deferred.measure(queue.record)
        self._refusals = meter.create_counter(
            sc.REFUSALS, unit="{request}", description="Requests that were not let in or on."
        )
        self._shadow = meter.create_counter(
            sc.SHADOW_DECISIONS,
            unit="{decision}",
            description="Decisions a shadow policy made too.",
        )
        self._retries = meter.create_counter(
            sc.RETRIES, unit="{attempt}", description="Attempts on another worker."
        )
        self._resumes = meter.create_counter(
            sc.RESUMES, unit="{attempt}", description="Streams that went on on another worker."
        )

        self._predicted, self._actual = Counter[str](), Counter[str]()
        self._over_budget = Counter[str]()
        self._watch_hits()

    def _watch_hits(self) -> None:
        def predicted(_options: CallbackOptions) -> Iterable[Observation]:
            return _by_worker(self._predicted)

        def actual(_options: CallbackOptions) -> Iterable[Observation]:
            return _by_worker(self._actual)

        self._meter.create_observable_counter(
            sc.PREDICTED_HITS,
            [predicted],
            unit="{token}",
            description="Prompt tokens expected in a cache.",
        )
        self._meter.create_observable_counter(
            sc.ACTUAL_HITS,
            [actual],
            unit="{token}",
            description="Prompt tokens that were in the cache.",
        )

    def over_budget(self, tenant: str) -> None:
        """A request was refused because its tenant's budget is spent."""
        self._over_budget[tenant] += 1

    def watch_budgets(self, shares: Callable[[], Mapping[str, float]]) -> None:
        """Read how much of each budget is spent whenever metrics are collected; tell its refusals from 0."""

        def spent(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(share, {sc.TENANT: tenant}) for tenant, share in shares().items()]

        self._meter.create_observable_gauge(
            sc.BUDGET_SPENT, [spent], description="Part of the budget that is spent, by tenant."
        )

        def refused(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(self._over_budget[t], {sc.TENANT: t}) for t in shares()]

        self._meter.create_observable_counter(
            sc.BUDGET_REFUSALS,
            [refused],
            unit="{request}",
            description="Refused: the budget is spent.",
        )

    def watch_quotas(self, decided_alone: Callable[[], int]) -> None:
        """Read how often limits were applied by this router's own count whenever metrics are collected."""

        def alone(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(decided_alone())]

        self._meter.create_observable_counter(
            sc.QUOTAS_ALONE, [alone], unit="{request}", description="Limits counted by one router."
        )

    def decided(self, seconds: float) -> None:
        """A decision was made."""
        self._decision(seconds, {})

    def hit(self, worker_id: str, predicted: int, actual: int) -> None:
        """A prefill is done: what was expected in the cache and what was there."""
        self._predicted[worker_id] += predicted
        self._actual[worker_id] += actual

    def gone(self, worker_id: str) -> None:
        """A worker is there no longer: workers come and go, and their series would only grow."""
        for counts in (self._predicted, self._actual):
            counts.pop(worker_id, None)

    def retried(self, slug: str, *, has_begun: bool) -> None:
        """A request goes to another worker, because of this error; if it has begun, it is resumed."""
        counter = self._resumes if has_begun else self._retries
        counter.add(1, {sc.ERROR_TYPE: slug})

    def queued(self, seconds: float, kind: str) -> None:
        """A request of this class waited so long for its worker."""
        self._queue(seconds, {sc.PRIORITY: kind})

    def refused(self, slug: str, kind: str) -> None:
        """A request of this class was refused, because of this error."""
        self._refusals.add(1, {sc.ERROR_TYPE: slug, sc.PRIORITY: kind})

    def shadowed(self, *, agrees: bool) -> None:
        """The shadow policy has decided as well."""
        self._shadow.add(1, {sc.SHADOW_AGREES: agrees})

    def watch_queue(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        """Read how many wait, by class, whenever metrics are collected; count their refusals from 0."""
        for kind in waiting():
            # A counter that begins at its first event shows no rate for it.
            self._refusals.add(0, {sc.ERROR_TYPE: Overloaded.slug, sc.PRIORITY: kind})

        def queued(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(n, {sc.PRIORITY: kind}) for kind, n in waiting().items()]

        self._meter.create_observable_gauge(
            sc.QUEUED, [queued], unit="{request}", description="Requests waiting, by class."
        )

    def watch_calibration(self, workers: Callable[[], Mapping[str, tuple[float, float]]]) -> None:
        """Read each worker's (TTFT error in seconds, trust) whenever metrics are collected."""

        def errors(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(e, {sc.WORKER_ID: name}) for name, (e, _) in workers().items()]

        def trust(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(t, {sc.WORKER_ID: name}) for name, (_, t) in workers().items()]

        self._meter.create_observable_gauge(
            sc.TTFT_ERROR, [errors], unit="s", description="Smoothed |actual - predicted| TTFT."
        )
        self._meter.create_observable_gauge(
            sc.HIT_TRUST, [trust], description="Smoothed actual over predicted cached tokens."
        )

    def watch_fleet(
        self,
        workers_by_state: Callable[[], Mapping[str, int]],
        index_blocks: Callable[[], int],
        divergences: Callable[[], int],
    ) -> None:
        """Read these whenever metrics are collected."""

        def states(_options: CallbackOptions) -> Iterable[Observation]:
            return [
                Observation(count, {sc.SYNC_STATE: state})
                for state, count in workers_by_state().items()
            ]

        def blocks(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(index_blocks())]

        def differences(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(divergences())]

        self._meter.create_observable_gauge(sc.WORKERS, [states], description="Workers by state.")
        self._meter.create_observable_gauge(
            sc.INDEX_BLOCKS, [blocks], unit="{block}", description="Blocks in the index."
        )
        self._meter.create_observable_counter(
            sc.DIVERGENCES, [differences], description="Times the index was found to be wrong."
        )


def _by_worker(counts: Mapping[str, int]) -> list[Observation]:
    # Copied first: collections come from another thread.
    return [Observation(count, {sc.WORKER_ID: name}) for name, count in dict(counts).items()]
