"""The gate, the end of abandoned work, and what the edge records of a request."""

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.responses import PlainTextResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock_core.errors import Aborted, Draining, Overloaded
from penstock_gateway.disconnect import until_disconnect
from penstock_gateway.edge import Edge
from penstock_gateway.gate import Gate

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def gone() -> Message:
    return {"type": "http.disconnect"}


async def call(app: ASGIApp, path: str, *headers: tuple[bytes, bytes]) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": list(headers)}
    await app(scope, never, send)
    return sent


def test_a_full_gate_refuses_and_opens_again() -> None:
    gate = Gate(1)
    with gate.pass_through(), pytest.raises(Overloaded), gate.pass_through():
        pass

    with gate.pass_through():
        pass


async def test_draining_waits_for_those_inside() -> None:
    gate = Gate(2)
    with gate.pass_through():
        draining = asyncio.create_task(gate.drain(5))
        await asyncio.sleep(0)
        with pytest.raises(Draining), gate.pass_through():
            pass
        assert not draining.done()

    assert await draining


async def test_draining_gives_up_after_its_time() -> None:
    gate = Gate(1)
    with gate.pass_through():
        assert not await gate.drain(0.01)


async def test_work_ends_with_its_client() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(Aborted):
        await until_disconnect(gone, work())
    assert cancelled.is_set()


async def test_work_that_is_done_outlives_a_client_that_left_at_the_same_time() -> None:
    async def work() -> str:
        return "done"

    assert await until_disconnect(gone, work()) == "done"


async def test_works_own_error_comes_out() -> None:
    async def work() -> None:
        raise Overloaded("full")

    with pytest.raises(Overloaded):
        await until_disconnect(never, work())


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # The process-wide provider can be set only once, so the edge under test gets its own.
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def routed() -> ASGIApp:
    async def answer(_request: object) -> PlainTextResponse:
        assert trace.get_current_span().is_recording()
        return PlainTextResponse("x")

    async def probe(_request: object) -> PlainTextResponse:
        return PlainTextResponse("x")

    return Router([Route("/v1/files/{file_id}", answer), Route("/healthz", probe)])


async def test_a_span_is_named_after_the_route_and_continues_the_callers_trace(
    spans: InMemorySpanExporter,
) -> None:
    edge = Edge(routed(), Gate(1), 1.0)

    await call(edge, "/v1/files/file-7", (b"traceparent", PARENT.encode()))

    (span,) = spans.get_finished_spans()
    assert span.name == "GET /v1/files/{file_id}"
    assert span.kind is trace.SpanKind.SERVER
    assert span.parent is not None
    assert format(span.parent.trace_id, "032x") in PARENT
    attributes = dict(span.attributes or {})
    assert attributes["http.request.method"] == "GET"
    assert attributes["http.route"] == "/v1/files/{file_id}"
    assert attributes["http.response.status_code"] == 200
    assert str(attributes["penstock.request.id"]).startswith("req_")


async def test_probes_make_no_spans(spans: InMemorySpanExporter) -> None:
    await call(Edge(routed(), Gate(1), 1.0), "/healthz")

    assert spans.get_finished_spans() == ()


async def test_a_defect_is_a_500_that_tells_nothing_and_a_failed_span(
    spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ZeroDivisionError("the secret")

    start, body = await call(Edge(broken, Gate(1), 1.0), "/v1/models")

    (span,) = spans.get_finished_spans()
    assert start["status"] == 500
    assert b"the secret" not in body["body"]
    assert "the secret" in caplog.text
    assert span.status.status_code is trace.StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "500"
