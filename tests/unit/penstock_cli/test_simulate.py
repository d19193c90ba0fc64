"""``penstock simulate``: JSON for machines, a table and plots for people, replays of logs."""

import json
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToJson
from typer.testing import CliRunner

from penstock.routing.v1 import routing_service_pb2
from penstock_cli.__main__ import build_app
from penstock_cli.views.plots import HIT_RATE_FILE, TTFT_FILE
from penstock_router.decisions import wire
from penstock_router.decisions.book import DecisionRecord, Inputs
from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import decide
from penstock_router.policy.facts import Match, RoutingRequest, WorkerView
from penstock_router.simulate.traces import CONVERSATION

KEYS = {
    "policy", "hit_rate", "ttft_mean_s", "ttft_p50_s", "ttft_p90_s", "ttft_p99_s",
    "prefill_utilization", "requests_per_s",
}  # fmt: skip


def penstock(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(build_app(), ["simulate", *words], env={"COLUMNS": "160"})
    assert result.exit_code == status, result.output
    return result.stdout


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": n * 100, "input_length": 2000, "output_length": 5, "hash_ids": [0, 1, n, n]}
        for n in range(2, 30)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def test_json_is_a_list_of_what_was_promised(trace: str) -> None:
    words = (
        "--workers", "8", "--cache-blocks", "3000", "--block-tokens", "512", "--prefill-rate",
        "8000", "--step-ms", "25", "--max-active", "64", "--speedup", "1.6", "--seed", "0",
        "--policy", "penstock", "--policy", "dynamo", "--json",
    )  # fmt: skip
    found = json.loads(penstock(trace, *words))
    assert [row["policy"] for row in found] == ["penstock", "dynamo"]
    assert all(set(row) == KEYS for row in found)
    assert found[0]["hit_rate"] > 0


def test_people_get_a_table_and_plots(trace: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = penstock(trace, "--workers", "2", "--plot", str(tmp_path / "plots"))
    assert "hit rate" in shown
    for name in (TTFT_FILE, HIT_RATE_FILE):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")


def test_engine_options_reach_the_engine(trace: str) -> None:
    base = json.loads(penstock(trace, "--workers", "2", "--json"))[0]
    words = ("--attention", "0.001", "--speeds", "1,0.5", "--ablate", "lateness")
    slower = json.loads(penstock(trace, "--workers", "2", "--json", *words))[0]
    assert slower["ttft_mean_s"] > base["ttft_mean_s"]


def test_the_cost_can_be_changed() -> None:
    words = (str(CONVERSATION), "--workers", "4", "--json")
    base, other = (penstock(*words, *w) for w in ((), ("--cost", "externality=0,lateness=0")))
    assert base != other
    ablated = penstock(*words, "--ablate", "externality", "--ablate", "lateness")
    assert ablated == other


def test_names_of_policies_are_shown_whole(trace: str) -> None:
    words = ["simulate", trace, "--policy", "least-prefill-work", "--policy", "smg-approximate"]
    result = CliRunner().invoke(build_app(), words, env={"COLUMNS": "80"})
    assert {"least-prefill-work", "smg-approximate"} <= set(result.stdout.split())


@pytest.mark.parametrize(
    "words",
    [
        ("--policy", "astrology"),
        ("--speeds", "fast"),
        ("--speeds", "1,nan"),
        ("--speeds", "1,inf"),
        ("--step-ms", "inf"),
        ("--ablate", "luck"),
        ("--cost", "luck=1"),
        ("--cost", "tpot=nan"),
    ],
)
def test_what_does_not_exist_is_told(trace: str, words: tuple[str, ...]) -> None:
    penstock(trace, *words, status=1)


def test_a_log_is_replayed(tmp_path: Path) -> None:
    views = (WorkerView("a", "e"), WorkerView("b", "e"))
    asked = RoutingRequest("req_1", "m", 100, 3, {"b": Match(96)}, 7)
    decision = decide(views, asked, 1.0, 2, CostParams())
    record = DecisionRecord(
        "dec_1", "req_1", 0, 1.0, "m", CostParams().digest(),
        Inputs(1.0, CostParams(), views, asked, 2), decision, 10,
    )  # fmt: skip
    entry = routing_service_pb2.WatchDecisionsResponse(decision=wire.decision_message(record))
    log = tmp_path / "log.jsonl"
    log.write_text(MessageToJson(entry, indent=None) + "\n")
    assert "1 the same bit for bit, 0 move" in penstock("--replay", str(log))
    (row,) = json.loads(penstock("--replay", str(log), "--ablate", "lateness", "--json"))
    assert not row["is_same"]
    assert row["worker_id"] == "b"
    changed = ("--cost", "lateness=7", "--ablate", "trust")
    assert "with lateness=7 and without trust: 0 the same" in penstock(
        "--replay", str(log), *changed
    )
    penstock("--replay", str(log), "--cost", "lateness", status=1)


def test_a_replay_takes_no_trace_and_no_policy(trace: str) -> None:
    penstock(trace, "--replay", trace, status=2)
    penstock("--replay", trace, "--policy", "dynamo", status=2)
