"""The worker's metrics: GenAI histograms once a request, gauges of the engine."""

from collections.abc import Callable, Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from penstock_core.telemetry import semconv as sc
from penstock_engine.api import EngineState

_METER = "penstock.worker"


class EngineGauges:
    """The engine's state as gauges.

    Scrapes come from another thread, where the engine must not be asked: they read the state that
    the event loop left here last.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity_blocks = capacity_blocks
        self._state = EngineState()
        meter = metrics.get_meter(_METER)
        for name, unit, read in (
            (sc.ENGINE_RUNNING, "{request}", lambda s: s.running),
            (sc.ENGINE_WAITING, "{request}", lambda s: s.waiting),
            (sc.ENGINE_USED_BLOCKS, "{block}", lambda s: s.used_blocks),
            (sc.ENGINE_CACHED_BLOCKS, "{block}", lambda s: s.cached_blocks),
            (sc.ENGINE_CAPACITY_BLOCKS, "{block}", lambda _: self.capacity_blocks),
            (sc.ENGINE_STEP, "s", lambda s: s.step_s),
            (sc.ENGINE_TOKENS_PER_STEP, "{token}", lambda s: s.tokens_per_step),
            (sc.ENGINE_PREEMPTIONS, "{preemption}", lambda s: s.preemptions),
            (sc.ENGINE_CACHE_LOSSES, "{loss}", lambda s: s.cache_losses),
            (sc.ENGINE_FIGURES_AGE, "s", lambda s: s.figures_age_s or 0.0),
        ):
            meter.create_observable_gauge(name, [self._callback(read)], unit=unit)
        meter.create_observable_counter(
            sc.ENGINE_BUSY, [self._callback(lambda s: s.busy_s)], "s", "Seconds of computing."
        )

    def update(self, state: EngineState) -> None:
        """Leave the current state for the next scrape."""
        self._state = state

    def _callback(
        self, read: Callable[[EngineState], float]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _options: [Observation(read(self._state))]


class ResponseCacheMetrics:
    """How often an answer was found in memory, and what memory holds."""

    def __init__(self, num_bytes: Callable[[], int], entries: Callable[[], int]) -> None:
        meter = metrics.get_meter(_METER)
        self._lookups = meter.create_counter(
            sc.RESPONSE_CACHE_LOOKUPS, unit="{request}", description="By outcome."
        )
        for name, unit, read in (
            (sc.RESPONSE_CACHE_BYTES, "By", num_bytes),
            (sc.RESPONSE_CACHE_ENTRIES, "{answer}", entries),
        ):
            meter.create_observable_gauge(name, [_observed(read)], unit=unit)

    def looked_up(self, outcome: str) -> None:
        """A request asked: ``hit``, ``miss`` or ``refresh``."""
        self._lookups.add(1, {sc.RESPONSE_CACHE: outcome})


def _observed(read: Callable[[], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _options: [Observation(read())]


class RequestMetrics:
    """GenAI's four histograms and what became of drafts, recorded when a request ends."""

    def __init__(self) -> None:
        meter = metrics.get_meter(_METER)
        self.duration = meter.create_histogram(
            sc.REQUEST_DURATION, unit="s", description="From arrival to the last token."
        )
        self.ttft = meter.create_histogram(
            sc.TTFT, unit="s", description="From arrival to the first token."
        )
        self.tpot = meter.create_histogram(
            sc.TPOT, unit="s", description="Time of each output token after the first."
        )
        self.tokens = meter.create_histogram(
            sc.TOKEN_USAGE, unit="{token}", description="Tokens of prompts and outputs."
        )
        self.drafts = meter.create_counter(
            sc.ENGINE_DRAFT_TOKENS, unit="{token}", description="Drafted tokens, by outcome."
        )
