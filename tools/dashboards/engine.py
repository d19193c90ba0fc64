"""Where do the workers' time and memory go?"""

from dashboards.grafana import Dashboard, Panel, Query
from dashboards.queries import WINDOW, rate, series
from penstock_core.telemetry import semconv as names

_OUTCOME = names.DRAFT_OUTCOME.replace(".", "_")
_DRAFTS = rate(names.ENGINE_DRAFT_TOKENS, "_total")
_USED, _CACHED = (series(names.ENGINE_USED_BLOCKS), series(names.ENGINE_CACHED_BLOCKS))
_CAPACITY = series(names.ENGINE_CAPACITY_BLOCKS)
_BATCH = (
    "Batch",
    [
        Panel(
            "Running",
            "Requests in the batch, by worker.",
            [Query(series(names.ENGINE_RUNNING), "{{instance}}")],
        ),
        Panel(
            "Waiting",
            "Requests that wait for a place.",
            [Query(series(names.ENGINE_WAITING), "{{instance}}")],
        ),
        Panel(
            "Step",
            "Smoothed length of a step.",
            [Query(series(names.ENGINE_STEP, "_seconds"), "{{instance}}")],
            "s",
        ),
    ],
)
_KV_CACHE = (
    "KV cache",
    [
        Panel(
            "In use",
            "Share of the pages that running requests hold.",
            [Query(f"{_USED} / {_CAPACITY}", "{{instance}}")],
            "percentunit",
        ),
        Panel(
            "Cached",
            "Share of the pages that hold a prefix for later requests.",
            [Query(f"{_CACHED} / {_CAPACITY}", "{{instance}}")],
            "percentunit",
        ),
        Panel(
            "Preemptions",
            "Sequences put back for better ones; many mean too little KV memory.",
            [Query(f"delta({series(names.ENGINE_PREEMPTIONS)}[{WINDOW}])", "{{instance}}")],
        ),
        Panel(
            "Lost pictures",
            "Times that a worker lost track of its cache; routers then know nothing of it.",
            [Query(f"delta({series(names.ENGINE_CACHE_LOSSES)}[{WINDOW}])", "{{instance}}")],
        ),
        Panel(
            "Age of the figures",
            "Of TensorRT-LLM's own, that the panels here are made from; 0 where the engine counts itself.",
            [Query(series(names.ENGINE_FIGURES_AGE, "_seconds"), "{{instance}}")],
            "s",
        ),
    ],
)
_SPECULATION = (
    "Speculation",
    [
        Panel(
            "Acceptance",
            "Share of drafted tokens that stood.",
            [
                Query(
                    rate(names.ENGINE_DRAFT_TOKENS, "_total", where=f'{_OUTCOME}="accepted"')
                    + f" / {_DRAFTS}",
                    "accepted",
                )
            ],
            "percentunit",
        ),
        Panel(
            "Tokens per step",
            "Of one sequence: 1 without speculation.",
            [Query(series(names.ENGINE_TOKENS_PER_STEP), "{{instance}}")],
        ),
    ],
)
_LOOKED_UP = names.RESPONSE_CACHE.replace(".", "_")
_RESPONSES = (
    "Answers from memory",
    [
        Panel(
            "Lookups",
            "Requests that asked for a kept answer, a second, by what they got.",
            [
                Query(
                    rate(names.RESPONSE_CACHE_LOOKUPS, "_total", _LOOKED_UP),
                    f"{{{{{_LOOKED_UP}}}}}",
                )
            ],
            "reqps",
        ),
        Panel(
            "Kept",
            "Answers that are kept, by worker.",
            [Query(series(names.RESPONSE_CACHE_ENTRIES), "{{instance}}")],
        ),
        Panel(
            "Memory",
            "That kept answers take, by worker.",
            [Query(series(names.RESPONSE_CACHE_BYTES), "{{instance}}")],
            "bytes",
        ),
    ],
)
PAGE = Dashboard("penstock-engine", "Engine", [_BATCH, _KV_CACHE, _SPECULATION, _RESPONSES])
