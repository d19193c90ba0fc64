"""Our encoding of spans is the SDK's, byte for byte once parsed, and the exporter uses it."""

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from penstock_core import tracing
from penstock_core.span_export import SpanEncoder, SpanExporter

Attribute = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]


class Recorder:
    """A provider whose spans are kept."""

    def __init__(self, max_attributes: int = 128) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider(
            resource=Resource.create({"service.name": "penstock-test", "n": 3}),
            span_limits=SpanLimits(max_attributes=max_attributes),
            shutdown_on_exit=False,
        )
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))

    def tracer(self, name: str = "penstock.test") -> trace.Tracer:
        return self.provider.get_tracer(name, "1")

    def spans(self) -> Sequence[ReadableSpan]:
        return self._kept.get_finished_spans()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.provider.shutdown()


def check(spans: Sequence[ReadableSpan]) -> None:
    assert spans
    assert SpanEncoder().encode(spans) == encode_spans(spans)


def record(recorder: Recorder, **attributes: Attribute) -> None:
    recorder.tracer().start_span("a name", attributes=attributes).end()


integers = st.integers(-(2**63), 2**63 - 1)
doubles = st.floats(allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
values = (
    texts
    | integers
    | doubles
    | st.booleans()
    | st.lists(texts, max_size=5)
    | st.lists(integers, max_size=5)
    | st.lists(doubles, max_size=5)
    | st.lists(st.booleans(), max_size=5)
)


@given(st.lists(st.dictionaries(texts.filter(bool), values, max_size=6), min_size=1, max_size=4))
def test_any_attributes_are_encoded_as_the_sdk_does(
    given_attributes: list[dict[str, Attribute]],
) -> None:
    recorder = Recorder()
    for attributes in given_attributes:
        recorder.tracer().start_span("span", attributes=attributes).end()
    check(recorder.spans())
    recorder.provider.shutdown()


@pytest.mark.parametrize("kind", list(SpanKind))
@pytest.mark.parametrize(
    "status", [Status(StatusCode.OK), Status(StatusCode.ERROR, "it failed"), Status()]
)
def test_kinds_and_statuses(recorder: Recorder, kind: SpanKind, status: Status) -> None:
    for name in ("first", "second", "ä" * 90):
        span = recorder.tracer().start_span(name, kind=kind)
        span.set_status(status)
        span.end()
    check(recorder.spans())


def test_parents_here_and_elsewhere_and_their_state(recorder: Recorder) -> None:
    elsewhere = tracing.incoming(
        {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "vendor=x,other=y"}
    )
    for _ in range(2):
        root = recorder.tracer().start_span("root", context=elsewhere)
        with trace.use_span(root, end_on_exit=True):
            tracing.record_span(recorder.tracer(), "phase", 1.5, 2.5, {"seconds": 1.0})
    check(recorder.spans())


def test_events_and_links_take_the_usual_way(recorder: Recorder) -> None:
    other = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState())
    for _ in range(2):
        span = recorder.tracer().start_span("linked", links=[Link(other, {"k": 1})])
        span.add_event("event", {"a": "b"})
        span.end()
        record(recorder, plain=True)
    check(recorder.spans())


def test_attributes_that_were_too_many_are_counted() -> None:
    recorder = Recorder(max_attributes=2)
    for _ in range(2):
        record(recorder, a=1, b=2, c=3, d=4)
    check(recorder.spans())
    recorder.provider.shutdown()


def test_scopes_and_resources_stay_apart(recorder: Recorder) -> None:
    other = Recorder()
    for number in range(3):
        for name in ("penstock.rpc", "penstock.worker"):
            recorder.tracer(name).start_span(f"{name} {number}").end()
    other.tracer().start_span("elsewhere").end()
    other.provider.shutdown()
    spans = [*recorder.spans(), *other.spans()]
    # Two providers of one resource: the SDK puts them together, and so do we.
    ours, theirs = SpanEncoder().encode(spans), encode_spans(spans)

    assert len(ours.resource_spans) == len(theirs.resource_spans) == 1
    assert [len(s.spans) for s in ours.resource_spans[0].scope_spans] == [3, 3, 1]
    assert ours == theirs


def test_the_exporter_sends_what_it_encoded(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    record(recorder, a=1)
    exporter = SpanExporter()
    sent: list[object] = []

    class Client:
        def Export(self, request: object, **_: object) -> None:  # noqa: N802 - the stub's
            sent.append(request)

    encoded: list[object] = []
    encode = exporter._encoder.encode

    def encoding(spans: Sequence[ReadableSpan]) -> object:
        encoded.append(encode(spans))
        return encoded[-1]

    monkeypatch.setattr(exporter._encoder, "encode", encoding)
    exporter._client = Client()  # type: ignore[assignment]
    exporter.export(recorder.spans())
    exporter.shutdown()

    assert encoded
    assert sent == encoded == [encode_spans(recorder.spans())]
