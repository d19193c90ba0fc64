"""What the dashboards show, each page a question that an operator has.

Names of metrics are those of ``penstock_core.semconv`` as Prometheus spells them: dots become
underscores, the unit and ``_total`` are appended.
"""

from dashboards.grafana import Dashboard, Panel, Query
from penstock_core import semconv as names

_WINDOW = "$__rate_interval"
_MODEL = names.REQUEST_MODEL.replace(".", "_")
_WORKER = names.WORKER_ID.replace(".", "_")
_STATUS = names.STATUS.replace(".", "_")


def _series(name: str, suffix: str = "") -> str:
    return name.replace(".", "_") + suffix


def _rate(name: str, suffix: str, by: str = "", where: str = "") -> str:
    selector = f"{{{where}}}" if where else ""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({_series(name, suffix)}{selector}[{_WINDOW}]))"


def _quantiles(name: str) -> list[Query]:
    buckets = _rate(name, "_seconds_bucket", "le")
    return [
        Query(f"histogram_quantile({share}, {buckets})", f"p{round(share * 100)}")
        for share in (0.5, 0.9, 0.99)
    ]


def _mean(name: str, by: str = "") -> str:
    return f"{_rate(name, '_seconds_sum', by)} / {_rate(name, '_seconds_count', by)}"


def _within(name: str, seconds: str) -> str:
    """Share of measurements of at most so long; ``seconds`` is one of the buckets' bounds."""
    fast = _rate(name, "_seconds_bucket", where=f'le="{seconds}"')
    return f"{fast} / {_rate(name, '_seconds_count')}"


_FAILED = 'rpc_status_code!~"OK|CANCELLED"'
_GENERATE = 'rpc_method="penstock.inference.v1.InferenceService/Generate"'
_CALLS = "_seconds_count"
_RPCS = names.RPC_DURATION


def service() -> Dashboard:
    """Are callers served well?"""
    tokens = 'gen_ai_token_type="{}"'
    failures = f"({_rate(_RPCS, _CALLS, where=f'{_GENERATE},{_FAILED}')} or vector(0))"
    return Dashboard(
        "penstock-service",
        "Service",
        [
            (
                "The four numbers",
                [
                    Panel("TTFT", "Time to first token.", _quantiles(names.TTFT), "s"),
                    Panel("TPOT", "Time per output token.", _quantiles(names.TPOT), "s"),
                    Panel(
                        "Latency",
                        "Whole requests, at the workers.",
                        _quantiles(names.REQUEST_DURATION),
                        "s",
                    ),
                ],
            ),
            (
                "Throughput",
                [
                    Panel(
                        "Tokens",
                        "Read and written, a second.",
                        [
                            Query(_rate(names.TOKEN_USAGE, "_sum", where=tokens.format(kind)), kind)
                            for kind in ("input", "output")
                        ],
                    ),
                    Panel(
                        "Requests",
                        "Finished, a second, by model.",
                        [Query(_rate(names.REQUEST_DURATION, _CALLS, _MODEL), f"{{{{{_MODEL}}}}}")],
                        "reqps",
                    ),
                    Panel(
                        "Goodput",
                        "Share of requests with the first token within 1 s, and of those with the "
                        "others within 50 ms each.",
                        [
                            Query(_within(names.TTFT, "1.0"), "TTFT within 1 s"),
                            Query(_within(names.TPOT, "0.05"), "TPOT within 50 ms"),
                        ],
                        "percentunit",
                    ),
                ],
            ),
            (
                "Errors",
                [
                    Panel(
                        "Failing calls",
                        "Share of Generate calls that end with an error.",
                        [Query(f"{failures} / {_rate(_RPCS, _CALLS, where=_GENERATE)}", "failed")],
                        "percentunit",
                    ),
                    Panel(
                        "Calls by status",
                        "gRPC status of all calls, on all servers.",
                        [Query(_rate(_RPCS, _CALLS, "rpc_status_code"), "{{rpc_status_code}}")],
                        "reqps",
                    ),
                    Panel(
                        "HTTP by status",
                        "What the gateway answered.",
                        [
                            Query(
                                _rate(names.HTTP_DURATION, _CALLS, "http_response_status_code"),
                                "{{http_response_status_code}}",
                            )
                        ],
                        "reqps",
                    ),
                ],
            ),
        ],
    )


def router() -> Dashboard:
    """Are decisions good, and quick?"""
    state = names.SYNC_STATE.replace(".", "_")
    return Dashboard(
        "penstock-router",
        "Router",
        [
            (
                "Hits",
                [
                    Panel(
                        "Cached prompt tokens",
                        "As predicted at the decision, and as workers then found them.",
                        [
                            Query(_rate(names.PREDICTED_HITS, "_total"), "predicted"),
                            Query(_rate(names.ACTUAL_HITS, "_total"), "actual"),
                        ],
                    ),
                    Panel(
                        "Prediction error",
                        "Cached tokens predicted over those found: 1 is perfect; more means that "
                        "workers had already dropped what the index promised.",
                        [
                            Query(
                                f"{_rate(names.PREDICTED_HITS, '_total', _WORKER)} / "
                                f"{_rate(names.ACTUAL_HITS, '_total', _WORKER)}",
                                f"{{{{{_WORKER}}}}}",
                            )
                        ],
                    ),
                    Panel(
                        "Hit rate",
                        "Share of prompt tokens that were not computed again.",
                        [
                            Query(
                                f"{_rate(names.ACTUAL_HITS, '_total')} / "
                                + _rate(
                                    names.TOKEN_USAGE, "_sum", where='gen_ai_token_type="input"'
                                ),
                                "hit rate",
                            )
                        ],
                        "percentunit",
                    ),
                ],
            ),
            (
                "Decisions",
                [
                    Panel(
                        "Decision time",
                        "Matching, costing and recording.",
                        _quantiles(names.DECISION_DURATION),
                        "s",
                    ),
                    Panel(
                        "Retries",
                        "Requests sent to another worker before their first token.",
                        [Query(_rate(names.RETRIES, "_total") + " or vector(0)", "retries")],
                        "reqps",
                    ),
                ],
            ),
            (
                "Index",
                [
                    Panel(
                        "Workers by state",
                        "LIVE is followed exactly; everything else is being caught up with.",
                        [Query(f"max by ({state}) ({_series(names.WORKERS)})", f"{{{{{state}}}}}")],
                    ),
                    Panel(
                        "Blocks",
                        "That each router's index holds.",
                        [Query(_series(names.INDEX_BLOCKS), "{{instance}}")],
                    ),
                    Panel(
                        "Divergences",
                        "Times that a worker's digest was not the index's; it is then read anew.",
                        [Query(_rate(names.DIVERGENCES, "_total"), "divergences")],
                    ),
                ],
            ),
        ],
    )


def engine() -> Dashboard:
    """Where do the workers' time and memory go?"""
    outcome = names.DRAFT_OUTCOME.replace(".", "_")
    drafts = _rate(names.ENGINE_DRAFT_TOKENS, "_total")
    used, cached = _series(names.ENGINE_USED_BLOCKS), _series(names.ENGINE_CACHED_BLOCKS)
    capacity = _series(names.ENGINE_CAPACITY_BLOCKS)
    return Dashboard(
        "penstock-engine",
        "Engine",
        [
            (
                "Batch",
                [
                    Panel(
                        "Running",
                        "Requests in the batch, by worker.",
                        [Query(_series(names.ENGINE_RUNNING), "{{instance}}")],
                    ),
                    Panel(
                        "Waiting",
                        "Requests that wait for a place.",
                        [Query(_series(names.ENGINE_WAITING), "{{instance}}")],
                    ),
                    Panel(
                        "Step",
                        "Smoothed length of a step.",
                        [Query(_series(names.ENGINE_STEP, "_seconds"), "{{instance}}")],
                        "s",
                    ),
                ],
            ),
            (
                "KV cache",
                [
                    Panel(
                        "In use",
                        "Share of the pages that running requests hold.",
                        [Query(f"{used} / {capacity}", "{{instance}}")],
                        "percentunit",
                    ),
                    Panel(
                        "Cached",
                        "Share of the pages that hold a prefix for later requests.",
                        [Query(f"{cached} / {capacity}", "{{instance}}")],
                        "percentunit",
                    ),
                    Panel(
                        "Preemptions",
                        "Sequences put back for better ones; many mean too little KV memory.",
                        [
                            Query(
                                f"delta({_series(names.ENGINE_PREEMPTIONS)}[{_WINDOW}])",
                                "{{instance}}",
                            )
                        ],
                    ),
                ],
            ),
            (
                "Speculation",
                [
                    Panel(
                        "Acceptance",
                        "Share of drafted tokens that stood.",
                        [
                            Query(
                                _rate(
                                    names.ENGINE_DRAFT_TOKENS,
                                    "_total",
                                    where=f'{outcome}="accepted"',
                                )
                                + f" / {drafts}",
                                "accepted",
                            )
                        ],
                        "percentunit",
                    ),
                    Panel(
                        "Tokens per step",
                        "Of one sequence: 1 without speculation.",
                        [Query(_series(names.ENGINE_TOKENS_PER_STEP), "{{instance}}")],
                    ),
                ],
            ),
        ],
    )


def batch() -> Dashboard:
    """Will batches be done in time?"""
    lines = _rate(names.BATCH_LINES_DONE, "_total", _STATUS)
    return Dashboard(
        "penstock-batch",
        "Batch",
        [
            (
                "Progress",
                [
                    Panel("Lines", "Done, a second.", [Query(lines, f"{{{{{_STATUS}}}}}")]),
                    Panel(
                        "Open batches",
                        "Created and not ended.",
                        [Query(_series(names.BATCH_OPEN), "open")],
                        kind="stat",
                    ),
                ],
            ),
            (
                "Shards",
                [
                    Panel(
                        "Time of a shard",
                        "Between its start and its committed result.",
                        _quantiles(names.BATCH_SHARD_DURATION),
                        "s",
                    ),
                    Panel(
                        "Ends of shards",
                        "Committed, or given back to be run again.",
                        [
                            Query(
                                _rate(names.BATCH_SHARD_DURATION, _CALLS, _STATUS),
                                f"{{{{{_STATUS}}}}}",
                            )
                        ],
                    ),
                ],
            ),
        ],
    )


def pages() -> dict[str, Dashboard]:
    """All of them by their files' names."""
    return {
        "service": service(),
        "router": router(),
        "engine": engine(),
        "batch": batch(),
    }
