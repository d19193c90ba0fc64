"""The simulator: the same every time, true to its engine model, and fed by real traces."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock_core.errors import InvalidRequest
from penstock_router.admission.ticket import AdmissionParams
from penstock_router.policy.cost import CostParams
from penstock_router.simulate import catalogue
from penstock_router.simulate import traces as shipped
from penstock_router.simulate.cache import BlockCache
from penstock_router.simulate.catalogue import Setup, build, canonical, without
from penstock_router.simulate.engine import EngineModel, Job
from penstock_router.simulate.fleet import Fleet, Outcome
from penstock_router.simulate.report import Result, percentile, result
from penstock_router.simulate.run import Run, simulate_all
from penstock_router.simulate.trace import TraceRequest, read_trace

TRACE = shipped.CONVERSATION
MODEL = EngineModel(cache_blocks=1000)


def request(name: str, at: float, tokens: int = 1024, blocks: Sequence[int] = ()) -> TraceRequest:
    return TraceRequest(name, at, tokens, 11, tuple(blocks))


def play(policy: str, trace: Sequence[TraceRequest], *models: EngineModel) -> Outcome:
    setup = Setup(models or (MODEL, MODEL))
    return Fleet(setup.models, build(policy, setup)).run(trace)


def by_name(outcome: Outcome) -> dict[str, Job]:
    return {job.request.request_id: job for job in outcome.jobs}


def compare(*names: str, requests: int = 200, workers: int = 4) -> dict[str, Result]:
    trace = read_trace(TRACE, 512, 1.0)[:requests]
    found = simulate_all(Run(names, trace, Setup((MODEL,) * workers)), lambda name, count: None)
    return {each.summary.policy: each for each in found}


@pytest.mark.parametrize("policy", catalogue.NAMES)
def test_every_policy_serves_every_request_and_equal_seeds_give_equal_results(policy: str) -> None:
    first, again = compare(policy)[policy], compare(policy)[policy]
    assert len(first.ttft_s) == 200
    assert first.summary == again.summary
    assert first.ttft_s == again.ttft_s
    assert 0 < first.summary.hit_rate < 1


def test_a_prompt_takes_its_prefill_and_each_token_a_step() -> None:
    job = by_name(play("round-robin", [request("a", 1.0, 8000)]))["a"]
    assert job.first_token_s == pytest.approx(2.0)
    assert job.finished_s == pytest.approx(2.0 + 10 * 0.025)


def test_an_engine_computes_one_prompt_after_the_other() -> None:
    jobs = by_name(play("round-robin", [request("a", 0.0, 8000), request("b", 0.5, 8000)], MODEL))
    assert jobs["b"].first_token_s == pytest.approx(2.0)


def test_what_was_computed_is_a_hit_until_it_is_evicted() -> None:
    chain = [request("a", 0.0, 1025, [1, 2]), request("b", 5.0, 1025, [1, 2])]
    assert by_name(play("round-robin", chain, MODEL))["b"].cached_tokens == 1024
    small = EngineModel(cache_blocks=4)
    between = [*chain[:1], request("x", 2.0, 1537, [7, 8, 9]), chain[1]]
    assert by_name(play("round-robin", between, small))["b"].cached_tokens < 1024


def test_decoding_slows_with_its_batch_and_contexts_and_speculation_speeds_it_up() -> None:
    pair = [request("a", 0.0), request("b", 0.0)]
    plain = by_name(play("round-robin", pair, MODEL))["a"].finished_s
    slow = EngineModel(step_per_request_s=0.01, step_per_token_s=1e-6)
    fast = EngineModel(tokens_per_step=2.5)
    assert by_name(play("round-robin", pair, slow))["a"].finished_s > plain
    assert by_name(play("round-robin", pair, fast))["a"].finished_s < plain


def test_attention_makes_the_same_tokens_dearer_behind_a_long_context() -> None:
    model = EngineModel(attention=1e-4)
    assert model.prefill_s(1000, 9000) > model.prefill_s(1000, 0) > EngineModel().prefill_s(1000, 0)
    assert model.at_speed(2.0).prefill_s(1000, 0) == pytest.approx(model.prefill_s(1000, 0) / 2)


def test_prefill_and_decoding_get_in_each_others_way_if_told_to() -> None:
    pair = [request("a", 0.0, 1024), request("b", 0.15, 8000)]
    plain = by_name(play("round-robin", pair, MODEL))
    model = EngineModel(cache_blocks=1000, slowdown=8.0, stall=0.9)
    jammed = by_name(play("round-robin", pair, model))
    assert jammed["a"].finished_s > plain["a"].finished_s
    assert jammed["b"].first_token_s > plain["b"].first_token_s


def test_more_than_a_batch_waits() -> None:
    one = EngineModel(max_active=1)
    jobs = by_name(play("round-robin", [request("a", 0.0), request("b", 0.0)], one))
    assert jobs["b"].started_s == pytest.approx(jobs["a"].finished_s)


def test_the_cache_never_holds_more_than_it_can_and_keeps_what_is_used() -> None:
    cache = BlockCache(4)
    cache.pin([], 3)
    assert cache.fill([1, 2, 3]) == ([1, 2, 3], [])
    assert not cache.fits([], 2)
    cache.release([1, 2, 3], 0)
    assert (cache.pinned_blocks, cache.cached_blocks) == (0, 3)
    assert cache.pin([1], 2) == [3], "leaves go first"
    assert cache.depth([1, 2, 3]) == 2


def test_penstock_beats_rules_that_see_only_half() -> None:
    found = compare("penstock", "dynamo", "smg", "round-robin", requests=600, workers=8)
    best = min(r.summary.ttft_mean_s for name, r in found.items() if name != "penstock")
    assert found["penstock"].summary.ttft_mean_s < 0.8 * best
    assert found["penstock"].summary.hit_rate > found["round-robin"].summary.hit_rate


def test_unequal_workers_are_learned() -> None:
    trace = read_trace(TRACE, 512, 0.2)[:200]
    setup = Setup((MODEL, MODEL.at_speed(0.25)))
    outcome = Fleet(setup.models, build("penstock", setup)).run(trace)
    computed = [0, 0]
    for job in outcome.jobs:
        computed[job.worker] += job.request.prompt_tokens - job.cached_tokens
    assert computed[0] > 2 * computed[1]


def test_a_request_that_would_be_late_is_refused() -> None:
    trace = [request(f"r{n}", 0.0, 8000) for n in range(8)]
    hurried = [TraceRequest(r.request_id, 0.0, 8000, 1, (), deadline_s=1.5) for r in trace]
    outcome = play("penstock", hurried, MODEL)
    assert len(outcome.rejected) == 7
    assert len(play("penstock", trace, MODEL).rejected) == 0


def test_terms_can_be_switched_off_and_change_the_result() -> None:
    trace = read_trace(TRACE, 512, 1.0)[:300]
    plain = Setup((MODEL,) * 4, cost=CostParams(), admission=AdmissionParams())
    blind = Setup((MODEL,) * 4, cost=without(CostParams(), ["externality", "lateness"]))
    means = [
        result("penstock", Fleet(s.models, build("penstock", s)).run(trace), 0.0).summary
        for s in (plain, blind)
    ]
    assert means[0] != means[1]
    untied = without(CostParams(), ["tie"])
    assert (untied.tie_s, untied.tie_ttft_share, untied.tie_share) == (0.0, 0.0, 0.0)
    with pytest.raises(InvalidRequest, match="no term"):
        without(CostParams(), ["shared"])


def test_names_are_forgiving_and_unknown_ones_are_told() -> None:
    assert canonical("Round_Robin") == "round-robin"
    assert canonical("llmd") == "llm-d"
    with pytest.raises(InvalidRequest, match="least-prefill-work"):
        canonical("astrology")


def test_percentiles_are_samples() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert percentile([], 0.5) == 0.0


def test_a_broken_trace_is_told_by_its_line(tmp_path: Path) -> None:
    good = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(good | {"hash_ids": ["x"]}) + "\n")
    with pytest.raises(InvalidRequest, match="line 3"):
        read_trace(path, 512)
    path.write_text(json.dumps(good) + "\n")
    assert read_trace(path, 512, 2.0)[0].blocks == (2,), "the partial block is no one's hit"
    path.write_text("")
    with pytest.raises(InvalidRequest, match="no request"):
        read_trace(path, 512)
