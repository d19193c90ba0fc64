"""Spans that have ended leave together, from a thread of their own, and in the end all of them."""

import threading
from collections.abc import Sequence

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from penstock_core.telemetry import span_export
from penstock_core.telemetry.span_export import SpanSender
from penstock_core.telemetry.spans import TracerProvider


class Kept(OTLPSpanExporter):
    """Keeps the names of what it is to send, batch by batch."""

    def __init__(self) -> None:
        super().__init__(endpoint="http://127.0.0.1:1", insecure=True)
        self.batches: list[list[str]] = []
        self.came = threading.Event()
        self.fails = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.fails:
            self.fails -= 1
            raise LookupError("no such thing")
        self.batches.append([span.name for span in spans])
        self.came.set()
        return SpanExportResult.SUCCESS

    @property
    def names(self) -> list[str]:
        return [name for batch in self.batches for name in batch]


def record(sender: SpanSender, count: int) -> list[str]:
    provider = TracerProvider(Resource.create({}), sender.take)
    provider.add_span_processor(sender)
    tracer = provider.get_tracer("penstock.test")
    names = [f"span {number}" for number in range(count)]
    for name in names:
        tracer.start_span(name).end()
    return names


def test_spans_leave_by_themselves() -> None:
    kept = Kept()
    sender = SpanSender(kept, delay_s=0.5)
    names = record(sender, 3)
    assert kept.came.wait(10)
    assert kept.names == names
    sender.shutdown()


def test_many_leave_before_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_export, "_LOOK_S", 0.05)
    monkeypatch.setattr(span_export, "_BATCH", 4)
    kept = Kept()
    sender = SpanSender(kept, delay_s=600.0)
    record(sender, 3)
    assert not kept.came.wait(0.3)
    record(sender, 1)
    assert kept.came.wait(10)
    assert len(kept.names) == 4
    sender.shutdown()


def test_the_last_ones_leave_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_export, "_LOOK_S", 60.0)
    kept = Kept()
    sender = SpanSender(kept)
    names = record(sender, 1030)
    sender.shutdown()
    assert kept.names == names
    assert [len(batch) for batch in kept.batches] == [512, 512, 6]


def test_a_flush_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_export, "_LOOK_S", 60.0)
    kept = Kept()
    sender = SpanSender(kept)
    names = record(sender, 2)
    assert sender.force_flush()
    assert kept.names == names
    sender.shutdown()


def test_what_waits_is_bounded_and_the_oldest_are_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(span_export, "_LOOK_S", 60.0)
    monkeypatch.setattr(span_export, "_MAX_WAITING", 4)
    kept = Kept()
    sender = SpanSender(kept)
    names = record(sender, 6)
    sender.shutdown()
    assert kept.names == names[2:]
    assert "spans were lost" in caplog.text


def test_a_batch_that_fails_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(span_export, "_BATCH", 2)
    monkeypatch.setattr(span_export, "_LOOK_S", 60.0)
    kept = Kept()
    kept.fails = 1
    sender = SpanSender(kept)
    names = record(sender, 3)
    sender.shutdown()
    assert kept.names == names[2:]
    assert "2 spans could not be sent" in caplog.text


def test_spans_of_the_sdk_come_through_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    kept = Kept()
    sender = SpanSender(kept)
    names = record(sender, 2)
    sender.shutdown()
    assert kept.names == names
