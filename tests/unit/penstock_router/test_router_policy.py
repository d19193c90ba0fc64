"""The decision: cheap, fair, the same for every router, and able to say why."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import decide, explain, rank
from penstock_router.policy.demand import deepest, first_divergent
from penstock_router.policy.facts import Explanation, Match, RoutingRequest, WorkerView

PARAMS = CostParams()
RATE = 1000.0


def worker(name: str, **facts: object) -> WorkerView:
    plain = WorkerView(name, f"epoch-of-{name}", base_s=0.0, slope_s=1 / RATE, capacity_blocks=1000)
    return plain._replace(**facts)  # type: ignore[arg-type]


def request(tokens: int = 1000, divergent: int | None = 7, **matches: Match) -> RoutingRequest:
    return RoutingRequest("r", "m", tokens, tokens // 32, matches, divergent)


def choose(
    *workers: WorkerView, asked: RoutingRequest, now: float = 0.0, seed: int = 1
) -> Explanation:
    why = explain(workers, asked, now, seed, PARAMS)
    assert why.decision == decide(workers, asked, now, seed, PARAMS)
    check_ranking(why, workers, asked, now)
    return why


def check_ranking(
    why: Explanation, workers: Sequence[WorkerView], asked: RoutingRequest, now: float
) -> None:
    """A trace tells of a decision what its explanation tells."""
    ranking = rank(workers, asked, now, why.decision, PARAMS)
    assert ranking == (why.candidates, why.reason, why.margin_s)


def winner(why: Explanation) -> str:
    assert why.decision.chosen is not None
    return why.decision.chosen.worker_id


def test_the_worker_that_holds_the_prefix_wins() -> None:
    why = choose(worker("a"), worker("b"), asked=request(b=Match(960)))
    assert winner(why) == "b"
    assert "holds 960 of 1000 prompt tokens" in why.reason
    assert "less to compute" in why.reason or "less delay" in why.reason
    assert why.margin_s > 0.9


def test_a_long_queue_outweighs_the_prefix() -> None:
    busy = worker("b", backlog_tokens=5000, waiting=3)
    why = choose(worker("a"), busy, asked=request(b=Match(960)))
    assert winner(why) == "a"
    assert "shorter queue" in why.reason


def test_a_short_queue_does_not() -> None:
    busy = worker("b", backlog_tokens=500, waiting=3)
    assert winner(choose(worker("a"), busy, asked=request(b=Match(960)))) == "b"


def test_a_burst_of_siblings_does_not_make_a_second_copy_of_a_long_prefix() -> None:
    burst = worker("b", backlog_tokens=30 * 29, waiting=30, base_s=0.003)
    assert winner(choose(worker("a", base_s=0.003), burst, asked=request(b=Match(960)))) == "b"


def test_without_affinity_another_would_have_been_chosen_at_this_loss() -> None:
    why = choose(worker("a"), worker("b", backlog_tokens=300), asked=request(b=Match(960)))
    assert winner(why) == "b"
    assert why.counterfactual_worker_id == "a"
    assert why.counterfactual_loss_s == pytest.approx(why.margin_s)


def test_a_sibling_waits_for_blocks_under_way_rather_than_compute_them_again() -> None:
    first_there = worker("a", backlog_tokens=1000, waiting=1)
    asked = request(a=Match(0, 960, eta=1.0, pending_requests=frozenset({"first"})))
    why = choose(first_there, worker("b"), asked=asked)
    assert winner(why) == "a"
    assert why.decision.waits_for == {"first"}
    assert "computing 960 more" in why.reason


def test_blocks_that_come_too_late_are_not_waited_for() -> None:
    asked = request(a=Match(0, 32, eta=60.0, pending_requests=frozenset({"first"})))
    why = choose(worker("a"), asked=asked)
    assert why.decision.chosen is not None
    assert why.decision.waits_for == frozenset()
    assert why.decision.chosen.uncached_tokens == 1000


def test_equals_are_settled_by_the_prefix_alone() -> None:
    names = ["a", "b", "c", "d"]
    winners = {
        winner(choose(*map(worker, order), asked=request(divergent=99), seed=seed))
        for seed, order in enumerate((names, names[::-1], names[2:] + names[:2]))
    }
    assert len(winners) == 1, "every router and every order say the same"
    spread = {winner(choose(*map(worker, names), asked=request(divergent=n))) for n in range(50)}
    assert spread == set(names), "other prefixes go elsewhere"


def test_equals_with_nothing_to_cache_share_the_work() -> None:
    asked = request(tokens=5, divergent=None)
    found = {winner(choose(worker("a"), worker("b"), asked=asked, seed=n)) for n in range(50)}
    assert found == {"a", "b"}


def test_among_near_equals_the_larger_hit_wins() -> None:
    full = worker("a", backlog_tokens=10)
    asked = request(a=Match(640), b=Match(608))
    assert winner(choose(full, worker("b", backlog_tokens=0), asked=asked)) == "a"


@pytest.mark.parametrize("utilisation", [0.0, 0.5, 0.9])
def test_in_a_busy_fleet_a_shorter_queue_is_no_tie_either(utilisation: float) -> None:
    # What a request costs everybody else is much the same wherever it goes, however much that is.
    shorter, longer = (
        worker(name, backlog_tokens=tokens, utilisation=utilisation)
        for name, tokens in (("a", 1000), ("b", 1060))
    )
    prefixes = (request(divergent=n) for n in range(20))
    assert {winner(choose(shorter, longer, asked=asked)) for asked in prefixes} == {"a"}


def test_work_delays_others_the_more_the_busier_the_fleet_is() -> None:
    def others(utilisation: float) -> float:
        chosen = decide((worker("a", utilisation=utilisation),), request(), 0.0, 1, PARAMS).chosen
        assert chosen is not None
        return chosen.externality_s / chosen.prefill_s

    assert others(0.0) == 0
    assert others(0.7) == pytest.approx(22.0 * 0.7**4 / 0.3)
    assert others(0.7) > 30 * others(0.35), "a fleet that is half idle has room for copies"
    assert others(0.95) == others(0.75), "and there is an end to it"


def test_a_hit_is_worth_what_it_can_be_trusted_for() -> None:
    doubted = worker("a", trust=0.3)
    stale = worker("b", confidence=0.3, sync_state="STALE")
    sure = worker("c")
    asked = request(a=Match(960), b=Match(960), c=Match(640))
    assert winner(choose(doubted, stale, sure, asked=asked)) == "c"


def test_full_memory_and_slow_decoding_cost() -> None:
    full = worker("a", used_blocks=990)
    slow = worker("b", step_s=0.5)
    fine = worker("c", step_s=0.02)
    why = choose(full, slow, fine, asked=request())
    assert winner(why) == "c"
    by_id = {c.worker_id: c for c in why.candidates}
    assert by_id["a"].kv_pressure_s > 0
    assert by_id["b"].tpot_s > 0
    assert by_id["c"].tpot_s == by_id["c"].kv_pressure_s == 0


def test_excluded_workers_are_recorded_and_never_chosen() -> None:
    draining = worker("a", excluded_because="it is draining")
    asked = replace(request(a=Match(960)), excluded=frozenset({"b"}))
    why = choose(draining, worker("b"), worker("c"), asked=asked)
    assert winner(why) == "c"
    assert {c.worker_id: c.excluded_because for c in why.candidates} == {
        "c": "",
        "a": "it is draining",
        "b": "it just failed this request",
    }
    assert "only worker" in why.reason


def test_nobody_is_an_answer_too() -> None:
    why = choose(worker("a", excluded_because="its state is DEAD"), asked=request())
    assert why.decision.chosen is None
    assert len(why.candidates) == 1
    assert choose(asked=request()).decision.chosen is None


def test_each_term_can_be_switched_off() -> None:
    busy = worker("b", backlog_tokens=5000, waiting=3)
    asked = request(b=Match(960))
    blind = replace(PARAMS, backlog=0.0, externality=0.0)
    assert winner(explain((worker("a"), busy), asked, 0.0, 1, blind)) == "b"
    assert blind.digest() != PARAMS.digest()


def test_the_first_divergent_block_is_the_first_nobody_has() -> None:
    chain = [1, 2, 3, 4]

    def first(*matches: Match) -> int | None:
        named = {str(number): match for number, match in enumerate(matches)}
        return first_divergent(chain, deepest(chain, named, 32))

    assert first() == 1
    assert first(Match(32), Match(64, 32)) == 4
    assert first(Match(128)) is None


views = st.builds(
    worker,
    st.uuids().map(str),
    backlog_tokens=st.integers(0, 50_000),
    running=st.integers(0, 64),
    waiting=st.integers(0, 64),
    utilisation=st.floats(0, 1.5),
    trust=st.floats(0.3, 1),
    confidence=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    step_s=st.floats(0, 0.2),
    used_blocks=st.integers(0, 1000),
    excluded_because=st.sampled_from(["", "", "", "its state is DEAD"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(views, max_size=6), st.data(), st.floats(0, 100))
def test_a_decision_is_a_pure_function_whose_terms_add_up(
    workers: list[WorkerView], data: st.DataObject, now: float
) -> None:
    matches = {
        w.worker_id: Match(data.draw(st.integers(0, 999)), 0 if n % 2 else 32, now + n)
        for n, w in enumerate(workers)
    }
    asked = replace(request(), matches=matches)
    why = explain(workers, asked, now, 1, PARAMS)
    check_ranking(why, workers, asked, now)
    assert why.decision == decide(workers, asked, now, 1, PARAMS)
    assert why == explain(workers[::-1], asked, now, 1, PARAMS) or len(
        {c.total_s for c in why.candidates}
    ) < len(workers)
    assert {c.worker_id for c in why.candidates} == {w.worker_id for w in workers}
    open_to = [c for c in why.candidates if not c.excluded_because]
    assert (why.decision.chosen is None) == (not open_to)
    for c in open_to:
        terms = (
            c.network_s, c.backlog_s, c.prefill_s, c.pending_s, c.externality_s, c.tpot_s,
            c.kv_pressure_s, c.lateness_s, c.adapter_load_s,
        )  # fmt: skip
        assert c.total_s == pytest.approx(sum(terms) + c.replication_s)
        assert min(terms) >= 0
        assert c.uncached_tokens >= 1
    if why.decision.chosen is not None:
        least = min(c.total_s for c in open_to)
        assert why.decision.chosen.total_s <= least + max(0.001, 0.02 * least) + 1e-12


def test_trust_can_be_switched_off() -> None:
    doubted = worker("b", trust=0.3)
    asked = request(b=Match(960))
    (usual,) = explain([doubted], asked, 0.0, 1, PARAMS).candidates
    (blind,) = explain([doubted], asked, 0.0, 1, replace(PARAMS, trust=0.0)).candidates
    assert usual.trusted_tokens == pytest.approx(288)
    assert blind.trusted_tokens == 960


@pytest.mark.parametrize("text", ["tpot=nan", "tpot=inf", "tpot=much", "tpot"])
def test_parameters_are_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="tpot"):
        CostParams.parse(text)
