"""PromQL from the names in ``penstock_core.telemetry.semconv``, as Prometheus spells them.

Dots become underscores; the unit and ``_total`` are appended.
"""

from dashboards.grafana import Query
from penstock_core.telemetry import semconv as names

WINDOW = "$__rate_interval"
MODEL = names.REQUEST_MODEL.replace(".", "_")
WORKER = names.WORKER_ID.replace(".", "_")
STATUS = names.STATUS.replace(".", "_")

CALLS = "_seconds_count"
FAILED = 'rpc_status_code!~"OK|CANCELLED"'
GENERATE = 'rpc_method="penstock.inference.v1.InferenceService/Generate"'


def series(name: str, suffix: str = "") -> str:
    """A metric's name in Prometheus; ``suffix`` holds its unit and what is asked of it."""
    return name.replace(".", "_") + suffix


def rate(name: str, suffix: str, by: str = "", where: str = "") -> str:
    """Its increase a second over all instances, by a label and where labels match if these are told."""
    selector = f"{{{where}}}" if where else ""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({series(name, suffix)}{selector}[{WINDOW}]))"


def quantiles(name: str) -> list[Query]:
    """A histogram's median, 90th and 99th percentile."""
    buckets = rate(name, "_seconds_bucket", "le")
    return [
        Query(f"histogram_quantile({share}, {buckets})", f"p{round(share * 100)}")
        for share in (0.5, 0.9, 0.99)
    ]


def within(name: str, seconds: str) -> str:
    """Share of measurements of at most so long; ``seconds`` is one of the buckets' bounds."""
    fast = rate(name, "_seconds_bucket", where=f'le="{seconds}"')
    return f"{fast} / {rate(name, '_seconds_count')}"
