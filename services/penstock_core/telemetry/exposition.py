"""The scrape endpoint's OpenMetrics with exemplars: buckets of histograms point at traces.

OpenTelemetry's Prometheus exporter leaves exemplars out; they are put back here. Prometheus asks for
OpenMetrics by itself, whoever asks for plain text gets that, without exemplars.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

_BUCKET = "_bucket"
_LAST = "+Inf"


class _Seen(Protocol):
    """An exemplar of the SDK's."""

    trace_id: int | None
    span_id: int | None
    value: float
    time_unix_nano: int


class ExemplarReader(PrometheusMetricReader):
    """The exporter's reader; keeps the exemplars of the collection that is under way."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Each family's data points, by the family's name without unit, in the exporter's order.
        self.seen: dict[str, list[Sequence[_Seen]]] = {}
        super().__init__(registry=registry)

    def _receive_metrics(
        self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        self.seen = {}
        if metrics_data is not None:
            for metric in _metrics(metrics_data):
                points = metric.data.data_points
                if points and hasattr(points[0], "bucket_counts"):
                    name = metric.name.replace(".", "_")
                    self.seen.setdefault(name, []).extend(p.exemplars or () for p in points)
        super()._receive_metrics(metrics_data, timeout_millis, **kwargs)


@dataclass(frozen=True, slots=True)
class Exposition(Collector):
    """A registry's metrics, histograms with exemplars. What prometheus_client's servers can serve."""

    registry: CollectorRegistry
    reader: ExemplarReader

    def collect(self) -> Iterator[Metric]:
        """Every family; the exporter collects when its first is asked for."""
        for family in self.registry.collect():
            seen = self.reader.seen.get(family.name.removesuffix(f"_{family.unit}"))
            if family.type == "histogram" and seen:
                family.samples = list(_annotated(family.samples, seen))
            yield family

    def restricted_registry(self, names: Iterable[str]) -> Any:
        """Some of the metrics."""
        return self.registry.restricted_registry(names)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text in the format that is asked for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self), content_type


def _metrics(data: Any) -> Iterator[Any]:
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            yield from scope.metrics


def _annotated(samples: Sequence[Sample], seen: list[Sequence[_Seen]]) -> Iterator[Sample]:
    """Buckets come point by point, each up to ``+Inf``: with the exemplar that lies in them."""
    point, below = 0, float("-inf")
    for sample in samples:
        if not sample.name.endswith(_BUCKET):
            yield sample
            continue
        bound = float(sample.labels["le"])
        here = seen[point] if point < len(seen) else ()
        found = next((e for e in here if below < e.value <= bound and e.trace_id), None)
        yield sample._replace(exemplar=_exemplar(found)) if found else sample
        below = bound
        if sample.labels["le"] == _LAST:
            point, below = point + 1, float("-inf")


def _exemplar(seen: _Seen) -> Exemplar:
    labels = {
        "trace_id": format(seen.trace_id or 0, "032x"),
        "span_id": format(seen.span_id or 0, "016x"),
    }
    return Exemplar(labels, seen.value, seen.time_unix_nano / 1e9)
