"""Will batches be done in time?"""

from dashboards.grafana import Dashboard, Panel, Query
from dashboards.queries import CALLS, STATUS, quantiles, rate, series
from penstock_core.telemetry import semconv as names

_LINES = rate(names.BATCH_LINES_DONE, "_total", STATUS)
_PROGRESS = (
    "Progress",
    [
        Panel("Lines", "Done, a second.", [Query(_LINES, f"{{{{{STATUS}}}}}")]),
        Panel(
            "Open batches",
            "Created and not ended.",
            [Query(series(names.BATCH_OPEN), "open")],
            kind="stat",
        ),
    ],
)
_SHARDS = (
    "Shards",
    [
        Panel(
            "Time of a shard",
            "Between its start and its committed result.",
            quantiles(names.BATCH_SHARD_DURATION),
            "s",
        ),
        Panel(
            "Ends of shards",
            "Committed, or given back to be run again.",
            [Query(rate(names.BATCH_SHARD_DURATION, CALLS, STATUS), f"{{{{{STATUS}}}}}")],
        ),
    ],
)
PAGE = Dashboard("penstock-batch", "Batch", [_PROGRESS, _SHARDS])
