"""Are callers served well?"""

from dashboards.grafana import Dashboard, Panel, Query
from dashboards.queries import CALLS, FAILED, GENERATE, MODEL, quantiles, rate, within
from penstock_core.telemetry import semconv as names

_TOKENS = 'gen_ai_token_type="{}"'
_FAILURES = f"({rate(names.RPC_DURATION, CALLS, where=f'{GENERATE},{FAILED}')} or vector(0))"
_THE_FOUR_NUMBERS = (
    "The four numbers",
    [
        Panel("TTFT", "Time to first token.", quantiles(names.TTFT), "s"),
        Panel("TPOT", "Time per output token.", quantiles(names.TPOT), "s"),
        Panel("Latency", "Whole requests, at the workers.", quantiles(names.REQUEST_DURATION), "s"),
    ],
)
_THROUGHPUT = (
    "Throughput",
    [
        Panel(
            "Tokens",
            "Read and written, a second.",
            [
                Query(rate(names.TOKEN_USAGE, "_sum", where=_TOKENS.format(kind)), kind)
                for kind in ("input", "output")
            ],
        ),
        Panel(
            "Requests",
            "Finished, a second, by model.",
            [Query(rate(names.REQUEST_DURATION, CALLS, MODEL), f"{{{{{MODEL}}}}}")],
            "reqps",
        ),
        Panel(
            "Goodput",
            "Share of requests with the first token within 1 s, and of those with the others within 50 ms each.",
            [
                Query(within(names.TTFT, "1.0"), "TTFT within 1 s"),
                Query(within(names.TPOT, "0.05"), "TPOT within 50 ms"),
            ],
            "percentunit",
        ),
    ],
)
_ERRORS = (
    "Errors",
    [
        Panel(
            "Failing calls",
            "Share of Generate calls that end with an error.",
            [Query(f"{_FAILURES} / {rate(names.RPC_DURATION, CALLS, where=GENERATE)}", "failed")],
            "percentunit",
        ),
        Panel(
            "Calls by status",
            "gRPC status of all calls, on all servers.",
            [Query(rate(names.RPC_DURATION, CALLS, "rpc_status_code"), "{{rpc_status_code}}")],
            "reqps",
        ),
        Panel(
            "HTTP by status",
            "What the gateway answered.",
            [
                Query(
                    rate(names.HTTP_DURATION, CALLS, "http_response_status_code"),
                    "{{http_response_status_code}}",
                )
            ],
            "reqps",
        ),
    ],
)
PAGE = Dashboard("penstock-service", "Service", [_THE_FOUR_NUMBERS, _THROUGHPUT, _ERRORS])
