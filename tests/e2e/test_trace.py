"""One trace from the edge to the decode step, as a real OTLP receiver gets it."""

import json
import secrets
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import openai
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock_core.telemetry import semconv as sc
from penstock_testing.processes.platform import UpProcess, wait_for
from penstock_testing.servers.otlp import OtlpReceiver, ReceivedSpan

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("platform")]

WriteLines = Callable[[Sequence[str]], Path]
GENERATE = "penstock.inference.v1.InferenceService/Generate"
PHASES = (sc.SPAN_QUEUE, sc.SPAN_PREFILL, sc.SPAN_DECODE)
CODE = "import sys\n\n\ndef main():\n"


class Caller:
    """Whoever calls the platform: the root of a trace."""

    def __init__(self) -> None:
        self.trace_id, self.span_id = secrets.token_hex(16), secrets.token_hex(8)
        self.traceparent = f"00-{self.trace_id}-{self.span_id}-01"


@pytest.fixture
def caller() -> Caller:
    return Caller()


def spans_by_place(spans: Sequence[ReceivedSpan]) -> dict[tuple[str, str], ReceivedSpan]:
    return {(span.service, span.name): span for span in spans}


def check_request(spans: Sequence[ReceivedSpan], parent_id: str) -> None:
    """Router, decision, worker and the engine's phases hang together under one span."""
    place = spans_by_place(spans)
    routed = place["penstock-router", GENERATE]
    decided = place["penstock-router", sc.SPAN_ROUTE]
    served = place["penstock-worker", GENERATE]
    phases = [place["penstock-worker", name] for name in PHASES]

    assert routed.parent_id == parent_id
    assert decided.parent_id == routed.span_id
    forwarded = place["penstock-router", sc.SPAN_FORWARD]
    assert forwarded.parent_id == routed.span_id
    assert decided.end_ns <= forwarded.start_ns <= served.start_ns
    assert served.parent_id == forwarded.span_id
    assert place["penstock-router", sc.SPAN_TOKENIZE].parent_id == routed.span_id
    candidates = decided.attributes[sc.DECISION_CANDIDATES]
    assert isinstance(candidates, list)
    assert decided.attributes[sc.WORKER_ID] == candidates[0]
    for side in (sc.CANDIDATE_COSTS_S, sc.CANDIDATE_TTFTS_S, sc.CANDIDATE_CACHED_TOKENS):
        told = decided.attributes[side]
        assert isinstance(told, list)
        assert len(told) == len(candidates)
    assert {phase.parent_id for phase in phases} == {served.span_id}
    assert [phase.start_ns for phase in phases] == sorted(phase.start_ns for phase in phases)
    assert all(served.start_ns <= p.start_ns <= p.end_ns <= served.end_ns for p in phases)
    assert decided.attributes[sc.WORKER_ID] == served.instance
    assert decided.attributes[sc.DECISION_ID] == served.attributes[sc.DECISION_ID]
    assert phases[1].attributes[sc.CACHED_TOKENS] == served.attributes[sc.CACHED_TOKENS]
    assert not any(span.failed for span in (routed, decided, served))


Place = tuple[str, str]
REQUEST: tuple[Place, ...] = (
    ("penstock-router", GENERATE),
    ("penstock-router", sc.SPAN_TOKENIZE),
    ("penstock-router", sc.SPAN_ROUTE),
    ("penstock-router", sc.SPAN_FORWARD),
    ("penstock-worker", GENERATE),
    *(("penstock-worker", name) for name in PHASES),
)


def whole(
    receiver: OtlpReceiver, trace_id: str, places: Sequence[Place], times: int = 1
) -> list[ReceivedSpan]:
    """A trace once the spans of these places have arrived, ``times`` each: no two come together."""

    def arrived() -> bool:
        found = Counter((span.service, span.name) for span in receiver.trace(trace_id))
        return all(found[place] >= times for place in places)

    assert receiver.wait_until(arrived), receiver.trace(trace_id)
    return receiver.trace(trace_id)


def test_request_through_the_gateway_is_one_trace(
    sdk: openai.OpenAI, model: str, receiver: OtlpReceiver, caller: Caller
) -> None:
    sdk.completions.create(
        model=model, prompt=CODE, max_tokens=4, extra_headers={"traceparent": caller.traceparent}
    )
    edge_place = ("penstock-gateway", "POST /v1/completions")
    spans = whole(receiver, caller.trace_id, (edge_place, *REQUEST))

    edge = spans_by_place(spans)[edge_place]
    assert edge.parent_id == caller.span_id
    assert edge.attributes["http.response.status_code"] == 200
    check_request(spans, edge.span_id)
    assert len(spans) == 9
    assert "def main" not in repr([span.attributes for span in spans])


def test_request_of_a_plain_stub_is_one_trace(
    platform: UpProcess, model: str, receiver: OtlpReceiver, caller: Caller
) -> None:
    request = generate_pb2.GenerateRequest(model=model, text=CODE)
    request.stop.max_tokens = 4
    metadata = (
        ("authorization", f"Bearer {platform.api_key}"),
        ("traceparent", caller.traceparent),
    )
    with grpc.insecure_channel(platform.router) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        list(stub.Generate(request, metadata=metadata, timeout=30))
    spans = whole(receiver, caller.trace_id, REQUEST)

    check_request(spans, caller.span_id)


def test_batch_is_linked_from_its_shard_to_the_trace_that_submitted_it(
    sdk: openai.OpenAI, batch_file: WriteLines, receiver: OtlpReceiver, caller: Caller
) -> None:
    with batch_file([f"{CODE}    # {n}\n" for n in range(3)]).open("rb") as file:
        uploaded = sdk.files.create(file=file, purpose="batch")
    batch = sdk.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/completions",
        completion_window="24h",
        extra_headers={"traceparent": caller.traceparent},
    )
    wait_for(lambda: sdk.batches.retrieve(batch.id).status == "completed", "the batch to end")

    edge_place = ("penstock-gateway", "POST /v1/batches")
    created_place = ("penstock-batch", "penstock.batch.v1.BatchService/CreateBatch")
    submit_place = ("penstock-batch", sc.SPAN_SUBMIT)
    places = (edge_place, created_place, submit_place)
    submitted = spans_by_place(whole(receiver, caller.trace_id, places))
    edge = submitted[edge_place]
    assert edge.parent_id == caller.span_id
    created = submitted[created_place]
    assert created.parent_id == edge.span_id
    assert submitted[submit_place].parent_id == created.span_id

    def shards() -> list[ReceivedSpan]:
        named = [span for span in receiver.spans() if span.name == sc.SPAN_SHARD]
        return [span for span in named if span.attributes[sc.BATCH_ID] == batch.id]

    assert receiver.wait_until(lambda: bool(shards()))
    (shard,) = shards()
    assert shard.links == (caller.trace_id,)
    assert shard.trace_id != caller.trace_id

    trace = whole(receiver, shard.trace_id, REQUEST, times=3)
    by_id = {span.span_id: span for span in trace}
    for routed in [s for s in trace if (s.service, s.name) == ("penstock-router", GENERATE)]:
        assert routed.parent_id == shard.span_id
        beneath = [span for span in trace if routed.span_id in ancestors(span, by_id)]
        check_request([routed, *beneath], shard.span_id)


def ancestors(span: ReceivedSpan, by_id: dict[str, ReceivedSpan]) -> set[str]:
    found: set[str] = set()
    while (parent := by_id.get(span.parent_id)) is not None:
        found.add(parent.span_id)
        span = parent
    return found


def test_metrics_go_out_by_otlp_and_are_there_to_scrape(
    platform: UpProcess, sdk: openai.OpenAI, model: str, receiver: OtlpReceiver
) -> None:
    sdk.completions.create(model=model, prompt=CODE, max_tokens=4)

    judged = {("penstock-worker", name) for name in (sc.TTFT, sc.TPOT, sc.REQUEST_DURATION)}
    assert receiver.wait_until(lambda: receiver.metrics() >= judged), receiver.metrics()
    scraped = ""
    for address in (platform.gateway, *metrics_addresses(platform)):
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            scraped += answer.read().decode()
    for name in (sc.TTFT, sc.TPOT, sc.DECISION_DURATION, sc.HTTP_DURATION, sc.RPC_DURATION):
        assert name.replace(".", "_") in scraped


def metrics_addresses(platform: UpProcess) -> list[str]:
    announced = json.loads((platform.data_dir / "platform.json").read_text(encoding="utf-8"))
    return list(announced["metrics"].values())


def scraped(address: str) -> str:
    """A scrape as Prometheus asks for it."""
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    request = urllib.request.Request(f"http://{address}/metrics", headers={"accept": accept})
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        text: str = answer.read().decode()
    families = list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]
    assert families
    return text


@pytest.mark.parametrize(
    ("process", "name"),
    [("worker", sc.TTFT), ("router", sc.RPC_DURATION), ("gateway", sc.HTTP_DURATION)],
)
def test_exemplars_lead_from_histograms_to_traces(
    platform: UpProcess,
    sdk: openai.OpenAI,
    model: str,
    process: str,
    name: str,
) -> None:
    announced = json.loads((platform.data_dir / "platform.json").read_text(encoding="utf-8"))
    metrics = {**announced["metrics"], "gateway": platform.gateway}
    addresses = [address for place, address in metrics.items() if place.startswith(process)]
    for address in addresses:
        scraped(address)  # what was there before is shown once
    mine = Caller()
    header = {"traceparent": mine.traceparent}
    sdk.completions.create(model=model, prompt=CODE, max_tokens=4, extra_headers=header)
    shown = "".join(map(scraped, addresses))

    buckets = [line for line in shown.splitlines() if line.startswith(name.replace(".", "_"))]
    pointing = [line for line in buckets if f'trace_id="{mine.trace_id}"' in line]
    assert pointing
    assert all("_bucket{" in line for line in pointing)
