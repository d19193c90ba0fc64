"""Decision logs as traces: what a router served, played through simulated workers."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToJson

from penstock.routing.v1 import routing_service_pb2
from penstock_core.blocks import chain, pack_hashes, pack_tokens
from penstock_core.errors import InvalidRequest
from penstock_router.decisions import wire
from penstock_router.decisions.book import DecisionRecord, Inputs, Outcome, Prefix
from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import decide
from penstock_router.policy.facts import RoutingRequest, WorkerView
from penstock_router.simulate import traces as shipped
from penstock_router.simulate.catalogue import Setup, build
from penstock_router.simulate.engine import EngineModel
from penstock_router.simulate.fleet import Fleet
from penstock_router.simulate.recorded import read_requests
from penstock_router.simulate.trace import read_trace

SHARED = list(range(1100))


def hashes(tokens: Sequence[int], block_tokens: int = 32) -> bytes:
    return pack_hashes(chain(pack_tokens(tokens), 1, block_tokens))


def decision(
    name: str, tokens: Sequence[int], at: float, attempt: int = 0, *, prefix: Prefix | None = None
) -> DecisionRecord:
    asked = RoutingRequest(name, "m", len(tokens), len(tokens) // 32, {}, max_tokens=99)
    views = (WorkerView("a", "e"),)
    decided = decide(views, asked, at, 1, CostParams())
    inputs = Inputs(at, CostParams(), views, asked, 1)
    return DecisionRecord(
        f"dec-{name}-{attempt}", name, attempt, at, "m", "p", inputs, decided, 5, queued_s=0.5,
        prefix=Prefix.of(hashes(tokens), 32) if prefix is None else prefix,
    )  # fmt: skip


def write(path: Path, *entries: DecisionRecord | Outcome) -> Path:
    lines = []
    for each in entries:
        message = routing_service_pb2.WatchDecisionsResponse()
        if isinstance(each, DecisionRecord):
            message.decision.CopyFrom(wire.decision_message(each))
        else:
            message.outcome.CopyFrom(wire.outcome_message(each))
        lines.append(MessageToJson(message, indent=None, preserving_proto_field_name=True))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    first, second = [*SHARED, *[7] * 600], [*SHARED, *[8] * 600]
    return write(
        tmp_path / "log.jsonl",
        decision("one", first, 100.0),
        Outcome("dec-one-0", "one", "a", 0, 0.1, output_tokens=3, status="unavailable"),
        decision("one", first, 101.0, 1),
        decision("two", second, 130.0),
        Outcome("dec-one-1", "one", "a", 0, 0.1, output_tokens=4, status="OK"),
    )


def test_a_log_tells_who_came_when_with_what_in_common(log: Path) -> None:
    one, two = read_requests(log, 512)
    assert (one.request_id, one.arrival_s, one.prompt_tokens) == ("one", 0.0, 1700)
    assert (one.output_tokens, two.output_tokens) == (7, 99), "of all attempts; the most for none"
    assert two.arrival_s == 30.0
    assert len(one.blocks) == len(two.blocks) == 3
    assert [a == b for a, b in zip(one.blocks, two.blocks, strict=True)] == [True, True, False]
    assert read_requests(log, 512, 2.0)[1].arrival_s == 15.0


def test_a_log_is_played_with_the_hits_that_it_had(log: Path) -> None:
    setup = Setup((EngineModel(),) * 2)
    outcome = Fleet(setup.models, build("penstock", setup)).run(read_requests(log, 512))
    assert {job.request.request_id: job.cached_tokens for job in outcome.jobs} == {
        "one": 0,
        "two": 1024,
    }


def test_blocks_may_be_larger_than_recorded_ones_but_not_smaller(log: Path) -> None:
    one, two = read_requests(log, 1024)
    assert one.blocks == two.blocks
    assert one.blocks == read_requests(log, 512)[0].blocks[1:2]
    with pytest.raises(InvalidRequest, match="multiples of 512 are"):
        read_requests(log, 256)


def test_a_prefix_is_few_bytes_and_ends_with_its_tokens() -> None:
    packed = hashes(list(range(5000)))
    assert Prefix.of(packed, 32) == (
        packed[15 * 8 : 16 * 8] + Prefix.of(packed, 32).hashes[8:],
        512,
    )
    assert len(Prefix.of(packed, 32).hashes) == 5000 // 512 * 8
    assert Prefix.of(hashes(list(range(2100)), 1024), 1024).step_tokens == 1024
    assert Prefix.of(b"", 32) == (b"", 512)


def test_what_cannot_be_played_is_told(tmp_path: Path, log: Path) -> None:
    older = write(tmp_path / "older.jsonl", decision("one", SHARED, 1.0, prefix=Prefix()))
    with pytest.raises(InvalidRequest, match="earlier version"):
        read_requests(older, 512)
    log.write_text(log.read_text() + '{"decision": 3}\n')
    with pytest.raises(InvalidRequest, match="line 6"):
        read_requests(log, 512)
    log.write_text('{"outcome": {}}\n')
    with pytest.raises(InvalidRequest, match="no decision"):
        read_requests(log, 512)
    with pytest.raises(InvalidRequest, match="as fast"):
        read_requests(log, 512, float("nan"))


def test_other_files_are_traces() -> None:
    path = shipped.CONVERSATION
    assert read_requests(path, 512) == read_trace(path, 512)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"timestamp": float("nan")}, "timestamp must be finite"),
        ({"priority": "urgent"}, "'urgent' is no class"),
        ({"deadline_s": "nan"}, "deadline_s must be a number"),
        ({"input_length": float("inf")}, "line 1"),
    ],
)
def test_a_trace_without_sense_is_told(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    entry = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]} | change
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(entry))
    with pytest.raises(InvalidRequest, match=told):
        read_requests(path, 512)


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_an_engine_has_finite_figures(figure: float) -> None:
    with pytest.raises(InvalidRequest, match="step_s cannot be"):
        EngineModel(step_s=figure)
