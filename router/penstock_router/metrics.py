"""The router's instruments. Names live in ``penstock_core.semconv``."""

from collections.abc import Callable, Iterable, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from penstock_core import semconv as sc


class RouterMetrics:
    """What the router counts. Nothing here is touched per token."""

    def __init__(self) -> None:
        meter = metrics.get_meter("penstock.router")
        self._meter = meter
        self._decision = meter.create_histogram(
            sc.DECISION_DURATION, unit="s", description="Hashing, matching and deciding."
        )
        self._predicted = meter.create_counter(
            sc.PREDICTED_HITS, unit="{token}", description="Prompt tokens expected in a cache."
        )
        self._actual = meter.create_counter(
            sc.ACTUAL_HITS, unit="{token}", description="Prompt tokens that were in the cache."
        )
        self._retries = meter.create_counter(
            sc.RETRIES, unit="{attempt}", description="Attempts on another worker."
        )
        self._resumes = meter.create_counter(
            sc.RESUMES, unit="{attempt}", description="Streams that went on on another worker."
        )

    def decided(self, seconds: float) -> None:
        """A decision was made."""
        self._decision.record(seconds)

    def hit(self, worker_id: str, predicted: int, actual: int) -> None:
        """A prefill is done: what was expected in the cache and what was there."""
        self._predicted.add(predicted, {sc.WORKER_ID: worker_id})
        self._actual.add(actual, {sc.WORKER_ID: worker_id})

    def retried(self, slug: str, *, has_begun: bool) -> None:
        """A request goes to another worker, because of this error; if it has begun, it is resumed."""
        counter = self._resumes if has_begun else self._retries
        counter.add(1, {sc.ERROR_TYPE: slug})

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
