"""A worker that has a request's adapter in memory is that much cheaper than one that must load it."""

from dataclasses import replace

import pytest

from penstock.routing.v1 import decision_pb2
from penstock.worker.v1 import state_pb2
from penstock_router.decisions import wire
from penstock_router.decisions.book import DecisionRecord, Inputs
from penstock_router.decisions.replay import replay_record
from penstock_router.fleet import translate
from penstock_router.fleet.adapters import Adapters, usual_load_s
from penstock_router.frames import LoadReport
from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import decide, explain
from penstock_router.policy.facts import Candidate, Match, RoutingRequest, WorkerView

PARAMS = CostParams()
LOADED = LoadReport(loaded_adapters=("poet", "sql"), adapter_load_s=0.4)
COLD = LoadReport(adapter_load_s=0.4)


def worker(name: str, backlog_tokens: int = 0) -> WorkerView:
    slope_s = 1 / 1000
    return WorkerView(name, "e", base_s=0.0, slope_s=slope_s, backlog_tokens=backlog_tokens)


def asked(**loads: float) -> RoutingRequest:
    return RoutingRequest("r", "m", 320, 10, {"b": Match(64)}, divergent=7, adapter_loads=loads)


def candidates(request: RoutingRequest, params: CostParams = PARAMS) -> dict[str, Candidate]:
    why = explain((worker("a"), worker("b")), request, 0.0, 1, params)
    return {c.worker_id: c for c in why.candidates}


def test_the_load_is_a_term_of_its_own_and_part_of_the_time_to_first_token() -> None:
    without, with_load = candidates(asked())["b"], candidates(asked(b=0.4))["b"]

    assert (without.adapter_load_s, with_load.adapter_load_s) == (0.0, 0.4)
    assert with_load.ttft_s == pytest.approx(without.ttft_s + 0.4)
    late_s = with_load.lateness_s - without.lateness_s
    assert with_load.total_s == pytest.approx(without.total_s + 0.4 + late_s)


def test_a_load_outweighs_a_short_prefix_and_a_long_queue_outweighs_a_load() -> None:
    workers = (worker("a"), worker("b"))
    why = explain(workers, asked(b=0.4), 0.0, 1, PARAMS)
    busy = decide((worker("a", 5000), worker("b")), asked(b=0.4), 0.0, 1, PARAMS)

    assert why.candidates[0].worker_id == "a"
    assert "most of it its adapter in memory" in why.reason
    assert busy.chosen is not None
    assert busy.chosen.worker_id == "b"


def test_the_term_can_be_switched_off() -> None:
    blind = CostParams.parse("adapter_load=0")
    assert candidates(asked(b=0.4), blind) == candidates(asked(), blind)


def test_a_record_carries_the_loads_and_replays_to_the_same_bits() -> None:
    workers, request = (worker("a"), worker("b")), asked(b=0.1 + 0.2)
    inputs = Inputs(3.0, PARAMS, workers, request, 5)
    decision = decide(workers, request, 3.0, 5, PARAMS)
    record = DecisionRecord("dec_1", "r", 0, 1.5, "m", PARAMS.digest(), inputs, decision, 40)
    message = decision_pb2.DecisionRecord.FromString(
        wire.decision_message(record).SerializeToString()
    )

    assert wire.inputs_of(message) == inputs
    assert [c.adapter_load_s for c in message.candidates if c.worker_id == "b"] == [0.1 + 0.2]
    assert replay_record(message).is_same
    forgetful = replay_record(message, lambda p: replace(p, adapter_load=0.0))
    assert forgetful.moves


def test_what_is_in_memory_is_not_waited_for() -> None:
    assert Adapters().wait_s("poet", LOADED, 0.0) == 0.0
    assert Adapters().wait_s("other", LOADED, 0.0) == 0.4


def test_a_worker_that_has_measured_none_takes_as_long_as_others_do() -> None:
    usual_s = usual_load_s([0.0, 0.2, 0.4])
    assert usual_s == pytest.approx(0.3)
    assert Adapters().wait_s("poet", LoadReport(), 0.0, usual_s) == usual_s
    assert usual_load_s([0.0, 0.0]) == 0.0


def test_an_adapter_on_its_way_is_waited_for_only_as_long_as_it_still_takes() -> None:
    adapters = Adapters()
    adapters.asked("poet", COLD, 10.0)
    adapters.asked("poet", COLD, 10.3)  # a second request hurries nothing and delays nothing
    adapters.asked("", COLD, 10.0)

    waits = [adapters.wait_s("poet", COLD, now) for now in (10.0, 10.1, 10.4, 11.0)]
    assert waits == pytest.approx([0.4, 0.3, 0.0, 0.0])
    assert adapters.wait_s("sql", COLD, 10.1) == 0.4


def test_an_adapter_that_never_came_has_to_be_loaded_again() -> None:
    adapters = Adapters()
    adapters.asked("poet", COLD, 10.0)
    assert adapters.wait_s("poet", COLD, 13.0) == 0.4
    adapters.asked("poet", COLD, 13.0)
    assert adapters.wait_s("poet", COLD, 13.3) == pytest.approx(0.1)


def test_a_report_travels_as_the_worker_told_it() -> None:
    sent = state_pb2.WorkerLoad(loaded_adapters=["poet", "sql"], adapter_load_s=0.4)
    report = translate.load(sent)

    assert (report.loaded_adapters, report.adapter_load_s) == (("poet", "sql"), 0.4)
    again = translate.load_message(report)
    assert (list(again.loaded_adapters), again.adapter_load_s) == (["poet", "sql"], 0.4)
