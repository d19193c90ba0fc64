"""Are decisions good, and quick?"""

from dashboards.grafana import Dashboard, Panel, Query
from dashboards.queries import WORKER, quantiles, rate, series
from penstock_core import semconv as names

_STATE = names.SYNC_STATE.replace(".", "_")
_HITS = (
    "Hits",
    [
        Panel(
            "Cached prompt tokens",
            "As predicted at the decision, and as workers then found them.",
            [
                Query(rate(names.PREDICTED_HITS, "_total"), "predicted"),
                Query(rate(names.ACTUAL_HITS, "_total"), "actual"),
            ],
        ),
        Panel(
            "Prediction error",
            "Cached tokens predicted over those found: 1 is perfect; more means that workers had already dropped what the index promised.",
            [
                Query(
                    f"{rate(names.PREDICTED_HITS, '_total', WORKER)} / {rate(names.ACTUAL_HITS, '_total', WORKER)}",
                    f"{{{{{WORKER}}}}}",
                )
            ],
        ),
        Panel(
            "Hit rate",
            "Share of prompt tokens that were not computed again.",
            [
                Query(
                    f"{rate(names.ACTUAL_HITS, '_total')} / "
                    + rate(names.TOKEN_USAGE, "_sum", where='gen_ai_token_type="input"'),
                    "hit rate",
                )
            ],
            "percentunit",
        ),
    ],
)
_DECISIONS = (
    "Decisions",
    [
        Panel(
            "Decision time",
            "Matching, costing and recording.",
            quantiles(names.DECISION_DURATION),
            "s",
        ),
        Panel(
            "Retries and resumes",
            "Requests sent to another worker before their first token, and streams that went on there.",
            [
                Query(rate(names.RETRIES, "_total") + " or vector(0)", "retries"),
                Query(rate(names.RESUMES, "_total") + " or vector(0)", "resumes"),
            ],
            "reqps",
        ),
    ],
)
_PRIORITY = names.PRIORITY.replace(".", "_")
_AGREES = names.SHADOW_AGREES.replace(".", "_")
_QUEUE = (
    "Queue",
    [
        Panel(
            "Waiting",
            "Requests that wait in the router for a worker, by class.",
            [Query(f"sum by ({_PRIORITY}) ({series(names.QUEUED)})", f"{{{{{_PRIORITY}}}}}")],
        ),
        Panel(
            "Time in the queue", "Until a worker was open.", quantiles(names.QUEUE_DURATION), "s"
        ),
        Panel(
            "Refusals",
            "Not let in, or told that the first token would come too late.",
            [Query(rate(names.REFUSALS, "_total", _PRIORITY), f"{{{{{_PRIORITY}}}}}")],
            "reqps",
        ),
        Panel(
            "Limits counted alone",
            "Requests to which a router applied limits by its own count, as Redis did not answer.",
            [Query(rate(names.QUOTAS_ALONE, "_total"), "alone")],
            "reqps",
        ),
    ],
)
_FORECASTS = (
    "Forecasts",
    [
        Panel(
            "TTFT error",
            "Smoothed difference of the first token's time as foretold and as measured, by worker.",
            [
                Query(
                    f"max by ({WORKER}) ({series(names.TTFT_ERROR, '_seconds')})",
                    f"{{{{{WORKER}}}}}",
                )
            ],
            "s",
        ),
        Panel(
            "Trust",
            "Smoothed share of the promised cached tokens that were there, by worker.",
            [Query(f"min by ({WORKER}) ({series(names.HIT_TRUST)})", f"{{{{{WORKER}}}}}")],
        ),
        Panel(
            "Shadow policy",
            "Decisions in which it agrees with the live one, and in which not.",
            [Query(rate(names.SHADOW_DECISIONS, "_total", _AGREES), f"{{{{{_AGREES}}}}}")],
        ),
    ],
)
_INDEX = (
    "Index",
    [
        Panel(
            "Workers by state",
            "LIVE is followed exactly; everything else is being caught up with.",
            [Query(f"max by ({_STATE}) ({series(names.WORKERS)})", f"{{{{{_STATE}}}}}")],
        ),
        Panel(
            "Blocks",
            "That each router's index holds.",
            [Query(series(names.INDEX_BLOCKS), "{{instance}}")],
        ),
        Panel(
            "Divergences",
            "Times that a worker's digest was not the index's; it is then read anew.",
            [Query(rate(names.DIVERGENCES, "_total"), "divergences")],
        ),
    ],
)
PAGE = Dashboard("penstock-router", "Router", [_HITS, _DECISIONS, _QUEUE, _FORECASTS, _INDEX])
