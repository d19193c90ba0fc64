"""What the router counts, as a collection sees it."""

import pytest
from opentelemetry import metrics as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from penstock_core.telemetry import semconv as sc
from penstock_router.metrics import RouterMetrics


def by_worker(reader: InMemoryMetricReader, name: str) -> dict[str, float]:
    data = reader.get_metrics_data()
    return {
        str((point.attributes or {})[sc.WORKER_ID]): point.value
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint)
    }


def test_series_of_workers_that_are_gone_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(api, "get_meter", provider.get_meter)
    counted = RouterMetrics()
    counted.hit("a", 64, 32)
    counted.hit("b", 96, 96)
    assert by_worker(reader, sc.ACTUAL_HITS) == {"a": 32, "b": 96}
    counted.gone("a")
    counted.gone("never met")
    assert by_worker(reader, sc.ACTUAL_HITS) == {"b": 96}
    assert by_worker(reader, sc.PREDICTED_HITS) == {"b": 96}
    provider.shutdown()
