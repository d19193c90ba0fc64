import pytest

from penstock_batch.state.facts import (
    CancelRequested,
    Created,
    Ending,
    Facts,
    Outcome,
    Planned,
    ShardDone,
)
from penstock_batch.state.steps import (
    FINALIZE,
    LEAST_URGENT,
    PLAN,
    STOP_GRACE_S,
    Leases,
    Step,
    next_steps,
    open_steps,
    shard_step,
    urgency,
)

CREATED = Created(0.0, "acme", "file_1", "/v1/completions", 1000)
PLANNED = Planned(1.0, "p", 3, 10, 0, "demo", "d")
FREE = Leases({})
NOW = 10.0


def names(facts: Facts, leases: Leases = FREE, now: float = NOW) -> list[str]:
    return [step.name for step in next_steps(facts, leases, now)]


def test_a_new_batch_is_planned() -> None:
    assert names(Facts.of([CREATED])) == [PLAN]


def test_each_planned_shard_without_a_fact_is_enqueued() -> None:
    assert names(Facts.of([CREATED, PLANNED, ShardDone(2.0, 1)])) == ["shard-0", "shard-2"]


def test_a_step_that_somebody_holds_is_left_alone() -> None:
    leases = Leases({"shard-0": True, "shard-1": False})
    assert names(Facts.of([CREATED, PLANNED]), leases) == ["shard-2"]


def test_a_batch_whose_shards_are_done_is_finalized_once() -> None:
    facts = Facts.of([CREATED, PLANNED, *(ShardDone(2.0, k) for k in range(3))])
    assert names(facts) == [FINALIZE]
    assert names(facts, Leases({FINALIZE: False})) == []


def test_nothing_is_left_to_do_for_a_batch_that_is_over() -> None:
    facts = Facts.of([CREATED, Outcome(3.0, Ending.FAILED)])
    assert names(facts) == []
    assert open_steps(facts) == []


def test_a_cancelled_batch_waits_for_running_shards_to_store_what_they_have() -> None:
    facts = Facts.of([CREATED, PLANNED, CancelRequested(NOW)])
    running = Leases({"shard-1": True})
    assert names(facts, running) == []
    assert names(facts, running, NOW + STOP_GRACE_S) == [FINALIZE]


@pytest.mark.parametrize("facts", [[CREATED], [CREATED, PLANNED]])
def test_a_cancelled_batch_does_not_wait_for_steps_in_the_queue(facts: list[Created]) -> None:
    cancelled = Facts.of([*facts, CancelRequested(NOW)])
    assert names(cancelled, Leases({"shard-1": False, PLAN: False})) == [FINALIZE]


def test_an_expired_batch_runs_no_further_shard() -> None:
    assert names(Facts.of([CREATED, PLANNED]), FREE, 1000.0) == [FINALIZE]


def test_the_less_time_is_left_the_more_urgent_a_batch_is() -> None:
    levels = [urgency(1_000_000.0, 1_000_000.0 - left) for left in (1, 1000, 5000, 86_400)]
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert levels[-1] == LEAST_URGENT


def test_a_shards_step_knows_its_shard() -> None:
    assert shard_step(12) == Step("shard-12", 12)
