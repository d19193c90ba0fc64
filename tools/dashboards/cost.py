"""Who takes how much of the workers, and what does that cost?"""

from dashboards.grafana import Dashboard, Panel, Query
from dashboards.queries import rate, series
from penstock_core.telemetry import semconv as names

_TENANT = names.TENANT.replace(".", "_")
_MODEL = names.REQUEST_MODEL.replace(".", "_")
_PHASE = names.PHASE.replace(".", "_")
_BY_TENANT, _BY_MODEL = f"{{{{{_TENANT}}}}}", f"{{{{{_MODEL}}}}}"
_AMOUNT, _TIME, _TOKENS = names.COST_AMOUNT, names.COST_TIME, names.COST_TOKENS


def _hourly(by: str) -> str:
    return f"{rate(_AMOUNT, '_total', by)} * 3600"


def _per_thousand(by: str) -> str:
    return f"1000 * {rate(_AMOUNT, '_total', by)} / {rate(_TOKENS, '_total', by)}"


_MONEY = (
    "Money",
    [
        Panel(
            "Cost per hour, by tenant",
            "At the present rate, in the prices' currency. Tenants beyond "
            "PENSTOCK_WORKER_METERED_TENANTS share a line.",
            [Query(_hourly(_TENANT), _BY_TENANT)],
            "currencyUSD",
        ),
        Panel(
            "Cost per hour, by model",
            "At the present rate.",
            [Query(_hourly(_MODEL), _BY_MODEL)],
            "currencyUSD",
        ),
        Panel(
            "Budget spent",
            "Share of each tenant's budget of this period; at 1 it is refused.",
            [Query(f"max by ({_TENANT}) ({series(names.BUDGET_SPENT)})", _BY_TENANT)],
            "percentunit",
        ),
        Panel(
            "Refused for their budget",
            "Requests of tenants whose budget of this period is spent.",
            [Query(rate(names.BUDGET_REFUSALS, "_total", _TENANT), _BY_TENANT)],
            "reqps",
        ),
    ],
)
_UNIT_COST = (
    "Per 1,000 tokens",
    [
        Panel(
            "By tenant",
            "Cost of 1,000 tokens, prompt and output together: falls with cache hits and full batches.",
            [Query(_per_thousand(_TENANT), _BY_TENANT)],
            "currencyUSD",
        ),
        Panel(
            "By model",
            "The same over all tenants of a model.",
            [Query(_per_thousand(_MODEL), _BY_MODEL)],
            "currencyUSD",
        ),
    ],
)
_WORKERS = (
    "Workers' time",
    [
        Panel(
            "Workers taken, by tenant",
            "Seconds of workers a second: 1 is a whole worker.",
            [Query(rate(_TIME, "_seconds_total", _TENANT), _BY_TENANT)],
        ),
        Panel(
            "Prefill and decode",
            "What the time went to.",
            [Query(rate(_TIME, "_seconds_total", _PHASE), f"{{{{{_PHASE}}}}}")],
        ),
        Panel(
            "Busy",
            "Share of each worker's time in which it computed; the rest is paid for and idle.",
            [Query(rate(names.ENGINE_BUSY, "_seconds_total", "instance"), "{{instance}}")],
            "percentunit",
        ),
    ],
)
PAGE = Dashboard("penstock-cost", "Cost", [_MONEY, _UNIT_COST, _WORKERS])
