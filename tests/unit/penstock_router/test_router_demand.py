"""Hot prefixes get copies before their holders are full, and speeds are learned with attention."""

import random

import pytest

from penstock_router.fleet.fit import PrefillFit
from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import decide
from penstock_router.policy.demand import PrefixDemand, deepest
from penstock_router.policy.facts import Match, RoutingRequest, WorkerView

NAMES = ["a", "b", "c", "d"]


def test_a_prefix_whose_holder_is_overwhelmed_gets_copies_on_the_same_workers_everywhere() -> None:
    demand, again = PrefixDemand(), PrefixDemand()
    for n in range(60):
        demand.observe(7, 1.0, n * 0.5)
        again.observe(7, 1.0, n * 0.5)
    holders = frozenset({"a"})
    wanted = demand.replicas(7, holders, NAMES, 30.0)
    assert 1 <= len(wanted) <= 3
    assert "a" not in wanted
    assert wanted == again.replicas(7, holders, NAMES[::-1], 30.0)
    assert demand.replicas(7, holders, NAMES, 600.0) == frozenset(), "demand fades"


def test_a_prefix_that_is_seldom_asked_for_gets_none() -> None:
    demand = PrefixDemand()
    demand.observe(7, 1.0, 0.0)
    assert demand.replicas(7, frozenset({"a"}), NAMES, 0.0) == frozenset()
    assert demand.replicas(8, frozenset({"a"}), NAMES, 0.0) == frozenset()
    assert demand.replicas(None, frozenset(), NAMES, 0.0) == frozenset()


def test_a_prefix_that_everybody_asks_for_from_now_on_has_its_copies_within_seconds() -> None:
    demand = PrefixDemand()
    for n in range(72):
        demand.observe(7, 0.3, n / 24)  # seven workers' work, for three seconds
    assert demand.replicas(7, frozenset({"a"}), NAMES, 3.0) == frozenset({"b", "c", "d"})


def test_one_long_prompt_is_no_stream_of_them() -> None:
    demand = PrefixDemand()
    demand.observe(7, 60.0, 0.0)
    assert demand.replicas(7, frozenset({"a"}), NAMES, 0.0) == frozenset()
    demand.observe(7, 1.0, 0.1)
    assert demand.replicas(7, frozenset({"a"}), NAMES, 0.1) == frozenset()


def test_only_the_hottest_prefixes_are_kept() -> None:
    demand = PrefixDemand()
    for n in range(5000):
        demand.observe(n, 1.0, n * 0.001)
        demand.observe(-1, 5.0, n * 0.001)
    assert len(demand) <= 512
    assert demand.replicas(-1, frozenset({"a"}), NAMES, 5.0)


def test_a_prefix_is_named_by_its_deepest_holder() -> None:
    matches = {"a": Match(64), "b": Match(32, 64), "c": Match(32)}
    assert deepest([10, 20, 30, 40], matches, 32) == (30, 3, frozenset({"b"}))
    assert deepest([10], {}, 32) == (None, 0, frozenset())


def test_a_wanted_copy_costs_nobody_anything() -> None:
    busy = [WorkerView(n, "e", utilisation=0.7, backlog_tokens=900 * (n == "a")) for n in "ab"]
    held = {"a": Match(800)}
    plain = RoutingRequest("r", "m", 1000, 31, held, 7)
    copied = RoutingRequest("r", "m", 1000, 31, held, 7, replicas=frozenset({"b"}))
    chosen = [decide(busy, asked, 0.0, 1, CostParams()).chosen for asked in (plain, copied)]
    assert [c.worker_id for c in chosen if c is not None] == ["a", "b"]
    off = decide(busy, copied, 0.0, 1, CostParams(replication=0.0)).chosen
    assert off is not None
    assert off.worker_id == "a"


@pytest.mark.parametrize("pair_s", [0.0, 2e-8, 1e-7])
def test_attention_is_told_from_length(pair_s: float) -> None:
    draw, fit = random.Random(1), PrefillFit(0.002, 1 / 4000)
    for _ in range(100):
        computed = draw.uniform(100, 15_000)
        cached = draw.choice([0, 0, 2000, 20_000, 60_000])
        pairs = computed * (cached + computed / 2)
        fit.add(computed, cached, 0.01 + computed / 8000 + pair_s * pairs)
    assert fit.base_s == pytest.approx(0.01, rel=0.02)
    assert fit.slope_s == pytest.approx(1 / 8000, rel=1e-3)
    assert fit.pair_s == pytest.approx(pair_s, rel=0.01, abs=1e-11)


def test_samples_of_one_kind_leave_a_line() -> None:
    fit = PrefillFit(0.002, 1 / 4000)
    for _ in range(100):
        fit.add(1000, 0, 0.125)
    assert fit.pair_s == 0.0
    assert fit.base_s + 1000 * fit.slope_s == pytest.approx(0.125, rel=0.02)
