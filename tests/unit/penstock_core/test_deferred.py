"""Measurements that are summed up later are all there when somebody collects."""

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from penstock_core.telemetry.deferred import Deferred


def sums(reader: InMemoryMetricReader) -> dict[str, float]:
    """The sum of each metric that tells anything."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
    return {m.name: sum(_value(point) for point in m.data.data_points) for m in metrics}


def _value(point: object) -> float:
    return float(getattr(point, "sum", 0) or getattr(point, "value", 0))


def test_every_reader_finds_what_was_measured_until_then_once() -> None:
    readers = InMemoryMetricReader(), InMemoryMetricReader()
    meter = MeterProvider(metric_readers=readers).get_meter("m")
    deferred = Deferred(meter)
    count = deferred.measure(meter.create_counter("count").add)
    took = deferred.measure(meter.create_histogram("took").record)

    count(2, {"a": "b"})
    took(0.5, {})
    assert [sums(reader) for reader in readers] == [{"count": 2, "took": 0.5}] * 2
    count(3, {})
    assert [sums(reader) for reader in readers] == [{"count": 5, "took": 0.5}] * 2


def test_many_do_not_wait_for_a_collection() -> None:
    seen: list[float] = []
    meter = MeterProvider(metric_readers=[InMemoryMetricReader()]).get_meter("m")
    note = Deferred(meter, most=3).measure(lambda value, _labels, _context: seen.append(value))

    note(1, {})
    note(2, {})
    assert seen == []
    note(3, {})
    assert seen == [1, 2, 3]


def test_an_exemplar_is_the_span_of_the_measurement() -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider(metric_readers=[reader]).get_meter("m")
    took = Deferred(meter).measure(meter.create_histogram("took").record)

    with use_span(NonRecordingSpan(SpanContext(7, 8, False, TraceFlags(TraceFlags.SAMPLED)))):
        took(0.5, {})

    data = reader.get_metrics_data()
    assert data is not None
    [metric] = data.resource_metrics[0].scope_metrics[0].metrics
    [exemplar] = [e for point in metric.data.data_points for e in point.exemplars]
    assert exemplar.trace_id == 7
