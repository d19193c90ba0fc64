import pytest

from penstock_batch.state.facts import (
    CancelRequested,
    Costs,
    Created,
    Ending,
    Facts,
    Outcome,
    Planned,
    ShardDone,
    Tokens,
)
from penstock_batch.state.fold import Batch, Counts, Status, ending_due, fold
from penstock_batch.wire import batch_message

CREATED = Created(100.0, "acme", "file_1", "/v1/completions", 1000, {"team": "x"})
PLANNED = Planned(110.0, "p", 2, 10, 3, "demo", "d")
FIRST = ShardDone(120.0, 0, "a", "s", 4, 1, Tokens(10, 5), cost=Costs(0.5, "USD", 1.0, 2.0))
SECOND = ShardDone(130.0, 1, "b", "s", 5, 0, Tokens(20, 6), cost=Costs(0.25, "USD", 0.5, 0.0))
CANCEL = CancelRequested(125.0)
NOW = 140.0


def folded(facts: Facts, now: float = NOW) -> Batch:
    batch = fold("batch_1", facts, now)
    assert batch is not None
    return batch


def test_what_was_never_created_is_no_batch() -> None:
    assert fold("batch_1", Facts(), NOW) is None


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (Facts.of([CREATED]), Status.VALIDATING),
        (Facts.of([CREATED, PLANNED]), Status.IN_PROGRESS),
        (Facts.of([CREATED, PLANNED, FIRST]), Status.IN_PROGRESS),
        (Facts.of([CREATED, PLANNED, FIRST, SECOND]), Status.FINALIZING),
        (Facts.of([CREATED, CANCEL]), Status.CANCELLING),
        (Facts.of([CREATED, PLANNED, FIRST, SECOND, CANCEL]), Status.CANCELLING),
        (Facts.of([CREATED, Outcome(150.0, Ending.FAILED)]), Status.FAILED),
        (Facts.of([CREATED, CANCEL, Outcome(150.0, Ending.CANCELLED)]), Status.CANCELLED),
        (Facts.of([CREATED, CANCEL, Outcome(150.0, Ending.COMPLETED)]), Status.COMPLETED),
    ],
)
def test_status_follows_from_the_facts(facts: Facts, status: Status) -> None:
    assert folded(facts).status is status


def test_a_batch_whose_window_closed_is_finalizing_until_its_outcome_is_known() -> None:
    facts = Facts.of([CREATED, PLANNED, FIRST])
    assert folded(facts, CREATED.expires - 1).status is Status.IN_PROGRESS
    assert folded(facts, CREATED.expires).status is Status.FINALIZING
    assert folded(facts, CREATED.expires).times.finalizing == CREATED.expires


def test_counts_and_usage_are_sums_over_shards() -> None:
    batch = folded(Facts.of([CREATED, PLANNED, FIRST, SECOND]))
    assert batch.counts == Counts(10, 9, 1)
    assert batch.usage == Tokens(30, 11)
    assert batch.cost == Costs(0.75, "USD", 1.5, 2.0)
    assert batch_message(batch).cost.micros == 750_000
    assert (batch.shards, batch.shards_done, batch.deduplicated) == (2, 2, 3)


def test_an_ended_batch_counts_lines_that_were_not_run_as_failed() -> None:
    ended = Outcome(150.0, Ending.CANCELLED, "out", "err", completed=4, failed=6)
    batch = folded(Facts.of([CREATED, PLANNED, FIRST, CANCEL, ended]))
    assert batch.counts == Counts(10, 4, 6)
    assert (batch.output_file_id, batch.error_file_id) == ("out", "err")


def test_times_tell_when_each_state_was_entered() -> None:
    ended = Outcome(150.0, Ending.COMPLETED)
    times = folded(Facts.of([CREATED, PLANNED, FIRST, SECOND, ended])).times
    assert (times.created, times.expires) == (100.0, 1100.0)
    assert (times.in_progress, times.finalizing, times.ended) == (110.0, 130.0, 150.0)
    assert times.cancelling is None


@pytest.mark.parametrize(
    ("facts", "now", "ending"),
    [
        (Facts(), NOW, None),
        (Facts.of([CREATED]), NOW, None),
        (Facts.of([CREATED, PLANNED, FIRST]), NOW, None),
        (Facts.of([CREATED, PLANNED, FIRST, SECOND]), NOW, Ending.COMPLETED),
        (Facts.of([CREATED, PLANNED, FIRST, SECOND]), 9999.0, Ending.COMPLETED),
        (Facts.of([CREATED, PLANNED, FIRST]), 1100.0, Ending.EXPIRED),
        (Facts.of([CREATED]), 1100.0, Ending.EXPIRED),
        (Facts.of([CREATED, PLANNED, CANCEL]), NOW, Ending.CANCELLED),
        (Facts.of([CREATED, PLANNED, CANCEL]), 9999.0, Ending.CANCELLED),
        (Facts.of([CREATED, PLANNED, CancelRequested(1200.0)]), 9999.0, Ending.EXPIRED),
        (Facts.of([CREATED, CANCEL, Outcome(150.0, Ending.CANCELLED)]), NOW, None),
    ],
)
def test_how_a_batch_has_to_end(facts: Facts, now: float, ending: Ending | None) -> None:
    assert ending_due(facts, now) is ending


def test_a_shard_that_was_closed_early_never_makes_a_batch_complete() -> None:
    closed = ShardDone(130.0, 1, closed=True)
    facts = Facts.of([CREATED, PLANNED, FIRST, closed])
    assert ending_due(facts, NOW) is Ending.EXPIRED
