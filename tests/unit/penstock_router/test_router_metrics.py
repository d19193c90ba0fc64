"""What the router counts, as a collection sees it."""

from collections.abc import Iterator

import pytest
from opentelemetry import metrics as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from penstock_core.telemetry import semconv as sc
from penstock_router.metrics import RouterMetrics


def seen(reader: InMemoryMetricReader, name: str, label: str) -> dict[str, float]:
    data = reader.get_metrics_data()
    return {
        str((point.attributes or {})[label]): point.value
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint)
    }


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(api, "get_meter", provider.get_meter)
    yield reader
    provider.shutdown()


def test_series_of_workers_that_are_gone_end(reader: InMemoryMetricReader) -> None:
    counted = RouterMetrics()
    counted.hit("a", 64, 32)
    counted.hit("b", 96, 96)
    assert seen(reader, sc.ACTUAL_HITS, sc.WORKER_ID) == {"a": 32, "b": 96}
    counted.gone("a")
    counted.gone("never met")
    assert seen(reader, sc.ACTUAL_HITS, sc.WORKER_ID) == {"b": 96}
    assert seen(reader, sc.PREDICTED_HITS, sc.WORKER_ID) == {"b": 96}


def test_refusals_of_every_budget_are_told_from_nought(reader: InMemoryMetricReader) -> None:
    counted, budgets = RouterMetrics(), {"acme": 0.5, "tiny": 1.0}
    counted.watch_budgets(lambda: budgets)
    counted.over_budget("tiny")
    assert seen(reader, sc.BUDGET_REFUSALS, sc.TENANT) == {"acme": 0, "tiny": 1}
    assert seen(reader, sc.BUDGET_SPENT, sc.TENANT) == budgets
