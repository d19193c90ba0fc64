"""A decision log replays to the same bits, and shows what another policy would have done."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.routing.v1 import decision_pb2
from penstock_core.errors import InvalidRequest
from penstock_router import translate
from penstock_router.cost import CostParams
from penstock_router.decision_log import write_decisions
from penstock_router.decisions import DecisionBook, DecisionRecord, Inputs
from penstock_router.facts import Match, RoutingRequest, WorkerView
from penstock_router.policy import decide
from penstock_router.record_wire import inputs_of
from penstock_router.replay import replay_log, replay_record

views = st.builds(
    # Hypothesis would draw the fields of a named tuple that have defaults as well.
    WorkerView("", "e")._replace,
    worker_id=st.uuids().map(str),
    seq=st.integers(0, 2**40),
    trust=st.floats(0.3, 1),
    confidence=st.sampled_from([0.0, 0.3, 1.0]),
    backlog_tokens=st.integers(0, 100_000),
    running=st.integers(0, 64),
    waiting=st.integers(0, 64),
    base_s=st.floats(0, 0.1),
    slope_s=st.floats(1e-6, 1e-2),
    pair_s=st.floats(0, 1e-9),
    utilisation=st.floats(0, 1.2),
    step_s=st.floats(0, 0.2),
    planned_s=st.floats(0, 20),
    planned=st.integers(0, 9),
    max_batch=st.integers(0, 64),
    used_blocks=st.integers(0, 1000),
    capacity_blocks=st.just(1000),
    excluded_because=st.sampled_from(["", "", "it is draining"]),
)


def record(
    workers: list[WorkerView], matches: dict[str, Match], now: float = 12.3, seed: int = 2**63 + 5
) -> DecisionRecord:
    asked = RoutingRequest("r", "m", 5000, 156, matches, divergent=2**64 - 7)
    params = CostParams()
    decision = decide(workers, asked, now, seed, params)
    inputs = Inputs(now, params, tuple(workers), asked, seed)
    return DecisionRecord(
        "dec_1", "r", 0, 1.5, "m", params.digest(), inputs, decision, 40, queued_s=0.25
    )


def two() -> DecisionRecord:
    workers = [WorkerView("a", "e", backlog_tokens=2000, waiting=1), WorkerView("b", "e")]
    return record(workers, {"a": Match(4800)})


@settings(max_examples=100, deadline=None)
@given(st.lists(views, max_size=5, unique_by=lambda w: w.worker_id), st.data(), st.floats(0, 1e9))
def test_a_decision_is_made_again_to_the_last_bit(
    workers: list[WorkerView], data: st.DataObject, now: float
) -> None:
    matches = {}
    for worker in workers:
        pending = data.draw(st.integers(0, 500))
        requests = frozenset({"x"}) if pending else frozenset[str]()
        matches[worker.worker_id] = Match(data.draw(st.integers(0, 4000)), pending, now, requests)
    made = record(workers, matches, now, data.draw(st.integers(0, 2**64 - 1)))
    wire = translate.decision_message(made).SerializeToString()
    again = replay_record(decision_pb2.DecisionRecord.FromString(wire))
    assert again.is_same
    assert not again.moves


async def test_a_log_replays_and_a_changed_policy_shows_its_moves(tmp_path: Path) -> None:
    book, path = DecisionBook(), tmp_path / "decisions.jsonl"
    task = asyncio.create_task(write_decisions(book, path))
    await asyncio.sleep(0)
    book.add(two())
    book.stream_over("dec_1", "cancelled")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (same,) = replay_log(path)
    assert same.is_same
    assert (same.logged_worker_id, same.worker_id) == ("a", "a")
    (moved,) = replay_log(path, lambda p: replace(p, backlog=50.0))
    assert moved.moves
    assert moved.loss_s > 0


def test_a_forged_record_is_found_out() -> None:
    message = translate.decision_message(two())
    message.candidates[0].externality_s += 1e-12
    assert not replay_record(message).is_same


def test_records_without_inputs_or_of_other_policies_are_refused(tmp_path: Path) -> None:
    bare = translate.decision_message(two())
    bare.ClearField("inputs")
    with pytest.raises(InvalidRequest, match="no inputs"):
        inputs_of(bare)
    other = translate.decision_message(two())
    other.inputs.parameters["charm"] = 1.0
    with pytest.raises(InvalidRequest, match="charm"):
        inputs_of(other)
    path = tmp_path / "log.jsonl"
    path.write_text("{}\nnonsense\n")
    with pytest.raises(InvalidRequest, match="line 2"):
        list(replay_log(path))


def test_outcomes_in_a_log_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"outcome": {"request_id": "r"}}\n')
    assert list(replay_log(path)) == []


def test_parameters_can_be_written_down() -> None:
    assert CostParams.parse("") == CostParams()
    assert CostParams.parse("busy=2, lateness=0") == CostParams(busy=2.0, lateness=0.0)
    with pytest.raises(ValueError, match="none of"):
        CostParams.parse("charm=1")
