"""Our spans tell what the SDK's tell: the same code under both providers exports the same bytes."""

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from penstock_core.telemetry import tracing
from penstock_core.telemetry.span_export import SpanEncoder
from penstock_core.telemetry.spans import Span, Tracer, TracerProvider

RESOURCE = Resource.create({"service.name": "penstock-test"})
ELSEWHERE = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "vendor=x"}
NOT_SAMPLED = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-00"}
OTHER = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1))


class Counting(IdGenerator):
    """1, 2, 3: two providers give the same ids."""

    def __init__(self) -> None:
        self._next = count(1)

    def generate_span_id(self) -> int:
        return next(self._next)

    def generate_trace_id(self) -> int:
        return next(self._next)

    def is_trace_id_random(self) -> bool:
        return True


class Recorder:
    """A provider whose spans are kept."""

    def __init__(self, make: Callable[[SpanProcessor], sdk.TracerProvider]) -> None:
        self._kept = InMemorySpanExporter()
        processor = SimpleSpanProcessor(self._kept)
        self.provider = make(processor)
        self.provider.id_generator = Counting()  # type: ignore[assignment] # it is an IdGenerator
        self.provider.add_span_processor(processor)
        self.tracer = self.provider.get_tracer("penstock.test", "1")

    def spans(self) -> Sequence[ReadableSpan]:
        return self._kept.get_finished_spans()


def own_provider(processor: SpanProcessor) -> TracerProvider:
    return TracerProvider(RESOURCE, ended=processor.on_end)


@pytest.fixture
def ours() -> Iterator[Recorder]:
    made = Recorder(own_provider)
    yield made
    made.provider.shutdown()


@pytest.fixture
def theirs() -> Iterator[Recorder]:
    made = Recorder(lambda _: sdk.TracerProvider(resource=RESOURCE))
    yield made
    made.provider.shutdown()


def a_request(tracer: trace.Tracer) -> None:
    root = tracer.start_span(
        "POST", tracing.incoming(ELSEWHERE), SpanKind.SERVER, {"id": "r", "n": 1}, start_time=1
    )
    with trace.use_span(root):
        tracing.record_span(tracer, "phase", 1.0, 2.0, {"seconds": 1.5, "names": ["a", "b"]})
    root.update_name("POST /v1")
    root.set_attributes({"status": 200, "ok": True})
    root.end(9)


def a_root_that_fails(tracer: trace.Tracer) -> None:
    span = tracer.start_span("root", start_time=1)
    span.set_status(Status(StatusCode.ERROR, "it failed"))
    span.set_attribute("error.type", "worker_lost")
    span.end(2)


def links_and_events(tracer: trace.Tracer) -> None:
    span = tracer.start_span("linked", links=[Link(OTHER, {"k": 1})], start_time=1)
    span.add_event("event", {"a": "b"}, timestamp=3)
    span.add_link(OTHER)
    span.end(4)


def statuses(tracer: trace.Tracer) -> None:
    span = tracer.start_span("status", start_time=1)
    span.set_status(StatusCode.ERROR, "first")
    span.set_status(StatusCode.UNSET)
    span.set_status(StatusCode.OK)
    span.set_status(StatusCode.ERROR, "after it was fine")
    span.end(2)


def what_comes_late(tracer: trace.Tracer) -> None:
    span = tracer.start_span("late", start_time=1)
    assert span.is_recording()
    span.end(2)
    span.end(3)
    span.set_attribute("a", 1)
    span.set_attributes({"b": 1})
    span.set_status(StatusCode.ERROR)
    span.update_name("later")
    span.add_event("event")
    assert not span.is_recording()


def not_sampled(tracer: trace.Tracer) -> None:
    span = tracer.start_span("root", tracing.incoming(NOT_SAMPLED))
    with trace.use_span(span):
        tracing.record_span(tracer, "phase", 1.0, 2.0, {})
        carried = dict(tracing.outgoing())["traceparent"]
        assert carried.startswith(f"00-{'ab' * 16}-")
        assert carried.endswith("-00")
    assert not span.is_recording()
    span.end()


@pytest.mark.parametrize(
    "story",
    [a_request, a_root_that_fails, links_and_events, statuses, what_comes_late, not_sampled],
)
def test_the_same_is_told_by_ours_and_the_sdks(
    story: Callable[[trace.Tracer], None], ours: Recorder, theirs: Recorder
) -> None:
    story(ours.tracer)
    story(theirs.tracer)
    assert encode_spans(ours.spans()) == encode_spans(theirs.spans())
    assert SpanEncoder().encode(ours.spans()) == encode_spans(theirs.spans())


class Colour(IntEnum):
    RED = 3


@pytest.mark.parametrize(
    "value", [None, b"raw", Colour.RED, SpanKind.SERVER.name, ("a", 1, 2.5, True), [], 2**62, -1]
)
def test_values_of_any_kind_are_encoded_as_the_sdk_does(ours: Recorder, value: Any) -> None:
    ours.tracer.start_span("span", attributes={"value": value}).end()
    assert SpanEncoder().encode(ours.spans()) == encode_spans(ours.spans())


def test_what_is_no_value_goes_as_its_text(ours: Recorder, theirs: Recorder) -> None:
    for recorder in (ours, theirs):
        odd: Any = Path("/a/path")
        recorder.tracer.start_span("span", attributes={"value": odd}, start_time=1).end(2)
    assert SpanEncoder().encode(ours.spans()) == encode_spans(theirs.spans())


def test_an_exception_that_leaves_the_current_span_is_told(
    ours: Recorder, theirs: Recorder
) -> None:
    told = []
    for recorder in (ours, theirs):
        with pytest.raises(LookupError), recorder.tracer.start_as_current_span("outer"):
            raise LookupError(trace.get_current_span().is_recording())
        (span,) = recorder.spans()
        (event,) = span.events
        attributes = dict(event.attributes or {})
        assert "test_spans.py" in str(attributes.pop("exception.stacktrace"))
        told.append((span.status.status_code, span.status.description, event.name, attributes))
    assert told[0] == told[1]
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_span_that_is_used_as_a_context_ends_and_tells_what_went_wrong(ours: Recorder) -> None:
    with pytest.raises(LookupError), ours.tracer.start_span("outer"):
        raise LookupError("not here")
    (span,) = ours.spans()
    assert span.end_time is not None
    assert span.status.description == "LookupError: not here"
    assert [event.name for event in span.events] == ["exception"]


def test_what_is_carried_on_is_the_spans_own_id_and_the_traces_flags(ours: Recorder) -> None:
    root = ours.tracer.start_span("root")
    child = ours.tracer.start_span("child", trace.set_span_in_context(root))
    context = child.get_span_context()
    carried = dict(tracing.outgoing(span=child))["traceparent"]
    # Sampled, and random in all its bits, which the next process may rely on.
    assert carried == f"00-{context.trace_id:032x}-{context.span_id:016x}-03"
    assert context.span_id != root.get_span_context().span_id


class Asked(Sampler):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def should_sample(self, *args: object, **kwargs: object) -> SamplingResult:
        self.names.append(str(kwargs.get("name", args[2] if len(args) > 2 else "")))
        return ALWAYS_ON.should_sample(*args, **kwargs)  # type: ignore[arg-type]

    def get_description(self) -> str:
        return "counts"


def test_the_sampler_is_asked_once_a_trace_and_process() -> None:
    asked, provider = Asked(), TracerProvider(RESOURCE, ended=list[Span]().append)
    provider.sampler = ParentBased(asked, remote_parent_sampled=asked)
    tracer = provider.get_tracer("penstock.test")
    for headers in ({}, ELSEWHERE):
        with trace.use_span(tracer.start_span("first", tracing.incoming(headers))):
            tracer.start_span("second").end()
    assert asked.names == ["first", "first"]
    provider.shutdown()


def test_below_a_trace_that_is_not_sampled_no_span_is_made(ours: Recorder) -> None:
    root = ours.tracer.start_span("root", tracing.incoming(NOT_SAMPLED))
    assert ours.tracer.start_span("child", trace.set_span_in_context(root)) is root


def test_where_nobody_listens_a_span_is_its_ids() -> None:
    provider = TracerProvider(RESOURCE)
    span = provider.get_tracer("penstock.test").start_span("root")
    assert not span.is_recording()
    assert dict(tracing.outgoing(span=span))["traceparent"].endswith("-03")
    provider.shutdown()


@pytest.mark.parametrize(
    "name", ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"]
)
def test_who_sets_a_limit_gets_the_sdks_spans(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    recorder = Recorder(own_provider)
    recorder.tracer.start_span("root", attributes={"a": "xyz", "b": "xyz", "c": "xyz"}).end()
    (span,) = recorder.spans()
    assert not isinstance(span, Span)
    told = dict(span.attributes or {})
    assert len(told) == 2 or set(told.values()) == {"xy"}
    recorder.provider.shutdown()


def test_a_disabled_sdk_makes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    provider = TracerProvider(RESOURCE, ended=list[Span]().append)
    tracer = provider.get_tracer("penstock.test")
    assert not isinstance(tracer, Tracer)
    assert not tracer.start_span("root").is_recording()
    provider.shutdown()
