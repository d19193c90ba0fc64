"""What a worker leaves in telemetry: one span a phase beneath the RPC's, GenAI metrics, gauges."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from penstock.inference.v1.generate_pb2 import RESPONSE_CACHE_MODE_USE, GenerateRequest
from penstock_core.telemetry import semconv as sc
from penstock_testing.callers.calls import Calls, calls_to
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.worker import running_worker

RPC = "penstock.inference.v1.InferenceService/Generate"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was recorded so far."""

    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def points(self) -> dict[str, list[object]]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", tracers.get_tracer)
    monkeypatch.setattr(metrics, "get_meter", meters.get_meter)
    yield Recorded(exporter, reader)
    tracers.shutdown()
    meters.shutdown()


def ask(request_id: str = "r") -> GenerateRequest:
    request = GenerateRequest(model="fake", text="hello " * 10, request_id=request_id)
    request.stop.max_tokens = 5
    return request


async def span_ended(recorded: Recorded, name: str) -> ReadableSpan:
    """A span, once the server has ended it: that is just after the client has its last message."""
    async with asyncio.timeout(20):
        while name not in recorded.spans():  # noqa: ASYNC110 - the exporter has no event
            await asyncio.sleep(0)
    return recorded.spans()[name]


async def test_phases_are_spans_beneath_the_call(recorded: Recorded) -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        await calls.generate(ask())
        call = await span_ended(recorded, RPC)
    spans = recorded.spans()

    assert set(spans) == {RPC, sc.SPAN_QUEUE, sc.SPAN_PREFILL, sc.SPAN_DECODE}
    phases = [spans[name] for name in (sc.SPAN_QUEUE, sc.SPAN_PREFILL, sc.SPAN_DECODE)]
    assert all(p.parent and p.parent.span_id == call.context.span_id for p in phases)
    assert phases[0].end_time == phases[1].start_time
    assert phases[1].end_time == phases[2].start_time
    assert call.attributes is not None
    assert call.attributes[sc.REQUEST_ID] == "r"
    assert call.attributes[sc.WORKER_ID] == worker.info.worker_id
    assert call.attributes[sc.INPUT_TOKENS] == 60
    assert call.attributes[sc.FINISH_REASONS] == ("length",)
    decode = phases[2].attributes
    assert decode is not None
    assert decode[sc.OUTPUT_TOKENS] == 5


async def test_prompts_and_outputs_are_nowhere_in_telemetry(recorded: Recorded) -> None:
    engine = FakeEngine(script=list(b"secret"))
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        await calls.generate(ask())
        await span_ended(recorded, RPC)

    everything = "".join(str(span.to_json()) for span in recorded.spans().values())
    assert "hello" not in everything
    assert "secret" not in everything


async def test_a_request_cut_short_has_the_phases_it_reached(recorded: Recorded) -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        stream = calls.inference.Generate(ask())
        await stream.read()
        stream.cancel()
        call = await span_ended(recorded, RPC)

    assert set(recorded.spans()) == {RPC, sc.SPAN_QUEUE, sc.SPAN_PREFILL}
    assert call.attributes is not None
    assert call.attributes[sc.RPC_STATUS] == "CANCELLED"


async def test_each_request_is_measured_once(recorded: Recorded) -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        for number in range(3):
            await calls.generate(ask(f"r{number}"))
        await all_measured(recorded, calls, 3)
        points = recorded.points()

    def counts(name: str) -> list[int]:
        return [point.count for point in points[name]]  # type: ignore[attr-defined]

    assert counts(sc.REQUEST_DURATION) == counts(sc.TTFT) == counts(sc.TPOT) == [3]
    assert counts(sc.TOKEN_USAGE) == [3, 3], "input and output"
    sums = sorted(point.sum for point in points[sc.TOKEN_USAGE])  # type: ignore[attr-defined]
    assert sums == [15, 180]
    assert [p.value for p in points[sc.ENGINE_CAPACITY_BLOCKS]] == [1024]  # type: ignore[attr-defined]


async def test_drafts_are_told_by_outcome(recorded: Recorded) -> None:
    engine = FakeEngine(FakeConfig(drafts=(9, 4)))
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        answers = await calls.generate(ask())
        await all_measured(recorded, calls, 1)
        points = recorded.points()[sc.ENGINE_DRAFT_TOKENS]

    assert answers.completed is not None
    usage = answers.completed.usage
    assert (usage.drafted_tokens, usage.accepted_draft_tokens) == (9, 4)
    decode = recorded.spans()[sc.SPAN_DECODE].attributes
    assert decode is not None
    assert (decode[sc.DRAFTED_TOKENS], decode[sc.ACCEPTED_DRAFT_TOKENS]) == (9, 4)
    told = {p.attributes[sc.DRAFT_OUTCOME]: p.value for p in points}  # type: ignore[attr-defined]
    assert told == {"accepted": 4, "rejected": 5}
    assert decode[sc.ACCEPTANCE_RATE] == pytest.approx(4 / 9)
    gained = usage.completion_tokens / (usage.completion_tokens - 4)
    assert decode[sc.TOKENS_PER_STEP] == pytest.approx(gained)


async def test_drafts_of_an_answer_from_memory_are_not_told_again(recorded: Recorded) -> None:
    engine = FakeEngine(FakeConfig(drafts=(9, 4)))
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        for number in range(2):
            request = ask(f"r{number}")
            request.sampling.temperature = 0
            request.response_cache = RESPONSE_CACHE_MODE_USE
            answers = await calls.generate(request)
            await all_measured(recorded, calls, 1)  # a kept answer leaves fewer spans
        points = recorded.points()[sc.ENGINE_DRAFT_TOKENS]
        durations = recorded.points()[sc.REQUEST_DURATION]

    assert [point.count for point in durations] == [2]  # type: ignore[attr-defined]
    assert answers.completed is not None
    assert answers.completed.from_response_cache
    told = {p.attributes[sc.DRAFT_OUTCOME]: p.value for p in points}  # type: ignore[attr-defined]
    assert told == {"accepted": 4, "rejected": 5}


async def all_measured(recorded: Recorded, calls: Calls, count: int) -> None:
    """Wait until the server is done with this many calls."""
    async with asyncio.timeout(20):
        while len(recorded.exporter.get_finished_spans()) < 4 * count:  # noqa: ASYNC110
            await asyncio.sleep(0)
