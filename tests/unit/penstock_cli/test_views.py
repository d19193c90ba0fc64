"""What people read: tables of fleets, decisions and batches."""

import io
import json

import pytest
from rich.console import Console, RenderableType

from penstock.batch.v1 import batch_pb2
from penstock.routing.v1 import decision_pb2, routing_service_pb2
from penstock.worker.v1 import state_pb2
from penstock_cli.views.amounts import duration, share
from penstock_cli.views.batches import BatchProgress, batch_lines, batches_table, status_name
from penstock_cli.views.decision import decision_view
from penstock_cli.views.documents import messages_to_json, to_dict
from penstock_cli.views.fleet import fleet_table


def shown(view: RenderableType, width: int = 250) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (0.0000042, "4.2 us"), (0.0123, "12.3 ms"), (4.5678, "4.57 s"), (4000, "4000 s"),
     (-0.002, "-2 ms")],
)  # fmt: skip
def test_durations_are_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_share_of_nothing_is_a_dash() -> None:
    assert (share(1, 4), share(1, 0)) == ("25 %", "-")


def decision() -> routing_service_pb2.ExplainDecisionResponse:
    record = decision_pb2.DecisionRecord(
        decision_id="dec_a", request_id="req_a", model="demo", prompt_tokens=100, num_blocks=3,
        chosen_worker_id="w1", reason="it holds [96] tokens", margin_s=0.05,
        counterfactual_worker_id="w0", counterfactual_loss_s=0.02, decision_us=250,
    )  # fmt: skip
    record.candidates.add(
        worker_id="w1", sync_state="LIVE", matched_tokens=96, prefill_s=0.001, total_s=0.011
    )
    record.candidates.add(
        worker_id="w0", backlog_s=0.06, total_s=0.061, excluded_because="draining"
    )
    return routing_service_pb2.ExplainDecisionResponse(decision=record)


def test_decision_shows_each_candidates_terms_the_reason_and_the_counterfactual() -> None:
    text = shown(decision_view(decision()))

    chosen = next(line for line in text.split("\n") if "-> w1" in line)
    assert all(part in chosen for part in ("96", "1 ms", "11 ms"))
    other = next(line for line in text.split("\n") if "   w0" in line)
    assert all(part in other for part in ("60 ms", "61 ms", "draining"))
    assert "w1, because it holds [96] tokens" in text
    assert "50 ms better than the next" in text
    assert "w0, at a cost of 20 ms more" in text
    assert "not known yet" in text


def test_candidates_columns_are_those_that_say_something_and_the_others_are_named() -> None:
    answer = decision()
    heading = next(line for line in shown(decision_view(answer)).split("\n") if "worker" in line)
    assert not any(name in heading for name in ("state", "trusted", "pending"))
    assert "nothing of network, pending, lateness" in shown(decision_view(answer))

    answer.decision.candidates[0].sync_state = "STALE"
    answer.decision.candidates[0].trusted_tokens = 28.8
    text = shown(decision_view(answer))
    chosen = next(line for line in text.split("\n") if "-> w1" in line)
    assert all(part in chosen for part in ("stale", "29"))


def test_figures_are_whole_on_a_narrow_terminal() -> None:
    answer = decision()
    for candidate in answer.decision.candidates:
        for term in ("network", "lateness", "externality", "tpot"):
            setattr(candidate, f"{term}_s", 0.1234)
    text = shown(decision_view(answer), width=90)

    chosen = next(line for line in text.split("\n") if "-> w1" in line)
    assert chosen.count("123 ms") == 4
    assert chosen.rstrip().endswith("11 ms")


def test_outcome_is_held_against_the_prediction() -> None:
    answer = decision()
    answer.outcome.CopyFrom(
        decision_pb2.OutcomeRecord(
            predicted_cached_tokens=96, actual_cached_tokens=64, predicted_ttft_s=0.011,
            actual_ttft_s=0.02, output_tokens=7, status="OK",
        )
    )  # fmt: skip
    text = shown(decision_view(answer))

    assert "predicted 96, actual 64" in text
    assert "predicted 11 ms, actual 20 ms" in text
    assert "OK, 7 tokens" in text


def test_fleet_shows_state_load_and_an_open_breaker() -> None:
    status = routing_service_pb2.WorkerStatus(
        info=state_pb2.WorkerInfo(worker_id="w0", endpoint="h:1", models=["demo"]),
        load=state_pb2.WorkerLoad(running=3, used_blocks=1, capacity_blocks=4),
        sync_state=routing_service_pb2.SYNC_STATE_STALE,
        breaker_open=True,
        trust=0.5,
    )
    text = shown(fleet_table([status]))

    assert all(p in text for p in ("w0", "h:1", "demo", "stale", "breaker open", "25 %", "0.50"))


def batch(status: batch_pb2.BatchStatus.ValueType, completed: int = 0) -> batch_pb2.Batch:
    counts = batch_pb2.RequestCounts(total=4, completed=completed, failed=1)
    return batch_pb2.Batch(id="batch_a", status=status, counts=counts, endpoint="/v1/completions")


def test_batch_shows_counts_and_problems_by_line() -> None:
    failed = batch(batch_pb2.BATCH_STATUS_FAILED, completed=2)
    failed.errors.add(code="invalid_json", message="not JSON", line=7)
    text = shown(batch_lines(failed))

    assert status_name(failed) == "failed"
    assert "2 answered, 1 failed, of 4" in text
    assert "line 7: not JSON (invalid_json)" in text
    assert "batch_a" in shown(batches_table([failed]))


def test_progress_counts_failed_lines_as_done() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with BatchProgress(console) as progress:
        progress.show(batch(batch_pb2.BATCH_STATUS_IN_PROGRESS, completed=2))

    assert isinstance(console.file, io.StringIO)
    assert "3/4" in console.file.getvalue()


def test_json_has_the_names_of_the_proto_and_fields_that_are_zero() -> None:
    document = to_dict(batch(batch_pb2.BATCH_STATUS_IN_PROGRESS))

    assert document["status"] == "BATCH_STATUS_IN_PROGRESS"
    assert document["shards_done"] == 0
    assert json.loads(messages_to_json([])) == []
