"""Any order, subset and duplication of facts folds to a legal state; ended batches never change."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_batch.state.facts import (
    CancelRequested,
    Created,
    Ending,
    Fact,
    Facts,
    Outcome,
    Planned,
    ShardDone,
    decode,
    encode,
)
from penstock_batch.state.fold import FOLLOWS, Batch, fold
from penstock_batch.state.steps import Leases, next_steps

SHARDS, LINES_EACH = 3, 4
TIMES = st.floats(0, 200)


@st.composite
def shard_facts(draw: st.DrawFn) -> ShardDone:
    completed = draw(st.integers(0, LINES_EACH))
    closed = draw(st.booleans())
    failed = draw(st.integers(0, LINES_EACH - completed)) if closed else LINES_EACH - completed
    shard = draw(st.integers(0, SHARDS - 1))
    return ShardDone(draw(TIMES), shard, "o", "s", completed, failed, closed=closed)


OUTCOMES = st.builds(
    Outcome,
    TIMES,
    st.sampled_from(Ending),
    completed=st.just(SHARDS * LINES_EACH),
    failed=st.just(0),
)
CREATED = Created(0.0, "acme", "file_1", "/v1/completions", 100)
FACTS: st.SearchStrategy[Fact] = st.one_of(
    st.builds(
        Planned, TIMES, st.just("p"), st.just(SHARDS), st.just(SHARDS * LINES_EACH),
        st.just(0), st.just("demo"), st.just("d"),
    ),
    shard_facts(),
    st.builds(CancelRequested, TIMES),
    OUTCOMES,
)  # fmt: skip


def view(facts: list[Fact], now: float) -> Batch:
    batch = fold("batch_1", Facts.of(facts), now)
    assert batch is not None
    return batch


@given(st.lists(FACTS, max_size=12), st.lists(st.floats(0, 30), min_size=13, max_size=13))
def test_as_facts_come_in_and_time_passes_states_follow_one_another_legally(
    facts: list[Fact], waits: list[float]
) -> None:
    now, known = waits[0], [CREATED]
    before = view(list(known), now)
    for fact, wait in zip(facts, waits[1:], strict=False):
        now += wait
        after = view([*known, fact], now)
        known.append(fact)  # type: ignore[arg-type]
        assert after.status is before.status or after.status in FOLLOWS[before.status]
        if before.status.final:
            assert (after.status, after.counts, after.times.ended) == (
                before.status, before.counts, before.times.ended,
            )  # fmt: skip
        before = after


@given(st.lists(FACTS, max_size=12), st.data())
def test_reading_the_same_facts_twice_or_in_another_order_changes_nothing(
    facts: list[Fact], data: st.DataObject
) -> None:
    # Of two facts of one name only the first is ever stored.
    first = {("shard", f.shard) if isinstance(f, ShardDone) else (type(f).__name__, 0): f
             for f in reversed(facts)}  # fmt: skip
    stored: list[Fact] = [CREATED, *first.values()]
    again = data.draw(st.permutations([*stored, *stored]))
    assert view(again, 50.0) == view(stored, 50.0)


@given(st.lists(FACTS, max_size=12))
def test_counts_never_go_down_while_facts_come_in(facts: list[Fact]) -> None:
    known: list[Fact] = [CREATED]
    before = view(known, 50.0).counts
    for fact in facts:
        known.append(fact)
        after = view(known, 50.0).counts
        assert after.completed >= before.completed
        assert after.completed + after.failed >= before.completed + before.failed
        before = after


@given(FACTS)
def test_every_fact_survives_its_json_form(fact: Fact) -> None:
    assert decode(encode(fact)) == fact


@given(
    st.lists(FACTS, max_size=12),
    st.dictionaries(st.sampled_from(["plan", "finalize", "shard-0", "shard-1"]), st.booleans()),
    st.floats(0, 300),
)
def test_no_held_and_no_finished_step_is_enqueued_and_an_open_batch_is_never_forgotten(
    facts: list[Fact], held: dict[str, bool], now: float
) -> None:
    known = Facts.of([CREATED, *facts])
    steps = next_steps(known, Leases(held), now)
    assert not {step.name for step in steps} & set(held)
    assert not {step.shard for step in steps} & set(known.shards)
    assert len(steps) == len(set(steps))
    if known.outcome is not None:
        assert steps == []
    elif not held:
        assert steps
