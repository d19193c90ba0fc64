"""The batch processes' metrics."""

from opentelemetry import metrics

from penstock_core.telemetry import semconv as sc


class BatchMetrics:
    """Lines done, shard durations, open batches."""

    def __init__(self) -> None:
        meter = metrics.get_meter("penstock.batch")
        self._lines = meter.create_counter(
            sc.BATCH_LINES_DONE, unit="{line}", description="Lines that got their answer."
        )
        self._shards = meter.create_histogram(
            sc.BATCH_SHARD_DURATION, unit="s", description="Duration of one run of a shard."
        )
        self._open = meter.create_gauge(
            sc.BATCH_OPEN, unit="{batch}", description="Batches that are not over."
        )

    def lines(self, completed: int, failed: int) -> None:
        """A shard was committed."""
        self._lines.add(completed, {sc.STATUS: "completed"})
        self._lines.add(failed, {sc.STATUS: "failed"})

    def shard(self, seconds: float, *, won: bool) -> None:
        """A shard was run; ``won`` if its answers are the ones that count."""
        self._shards.record(seconds, {sc.STATUS: "committed" if won else "duplicate"})

    def open_batches(self, count: int) -> None:
        """How many batches are open."""
        self._open.set(count)
