"""What the scheduler decides, one decision at a time."""

import pytest

from penstock_core.errors import Conflict, Overloaded, PromptTooLong
from penstock_engine.api import (
    Admitted,
    FinishReason,
    Priority,
    RequestDone,
    TokenOut,
)
from penstock_engine.native.scheduling.limits import Limits
from penstock_engine.native.scheduling.plan import StepPlan, StepResult
from penstock_engine.native.scheduling.request import Drawn
from penstock_testing.engines.scheduler_driver import Driver


def test_a_long_prompt_is_cut_to_the_token_budget() -> None:
    driver = Driver(budget=10)
    driver.submit("a", range(25))

    assert [driver.step()["a"] for _ in range(4)] == [10, 10, 5, 1]


def test_decoding_goes_on_while_another_prompt_is_computed() -> None:
    driver = Driver(budget=10)
    driver.submit("a", [1, 2])
    driver.step()
    driver.submit("b", range(30))

    assert driver.step() == {"a": 1, "b": 9}


def test_a_prompt_being_computed_is_waited_for() -> None:
    driver = Driver(budget=8)
    driver.submit("first", range(20))
    driver.submit("second", [*range(20), 99])
    driver.submit("other", [50, 51])

    assert driver.step() == {"first": 8}
    assert driver.step() == {"first": 8}
    driver.run()

    assert driver.admitted("second").cached_tokens == 20
    assert driver.done("second").computed_prompt_tokens == 1


def test_a_waiter_starts_as_soon_as_the_shared_blocks_are_there() -> None:
    driver = Driver(budget=8)
    driver.submit("first", range(40))
    driver.submit("second", [*range(8), 99])

    driver.step()
    driver.step()

    assert driver.admitted("second").cached_tokens == 8


def test_a_waiter_goes_on_when_the_one_it_waits_for_is_aborted() -> None:
    driver = Driver(budget=8)
    driver.submit("first", range(40))
    driver.submit("second", range(40))
    driver.step()

    driver.scheduler.abort("first", None, driver.now)

    assert driver.step() == {"second": 8}
    assert driver.admitted("second").cached_tokens == 8


def test_nobody_waits_for_a_worse_class() -> None:
    driver = Driver(budget=12)
    driver.submit("batch", range(40), priority=Priority.BATCH)
    driver.step()
    driver.submit("system", range(40), priority=Priority.SYSTEM)

    assert driver.step()["system"] > 0


def test_better_classes_are_admitted_first() -> None:
    driver = Driver(batch=1)
    driver.submit("batch", [1], priority=Priority.BATCH)
    driver.submit("standard", [2])
    driver.submit("system", [3], priority=Priority.SYSTEM)

    order = []
    while driver.scheduler.has_work:
        order += list(driver.step())

    assert list(dict.fromkeys(order)) == ["system", "standard", "batch"]


def test_a_better_class_takes_the_place_of_a_worse_one() -> None:
    driver = Driver(batch=2, budget=20)
    driver.submit("old", [1], 9, priority=Priority.BATCH)
    driver.submit("young", [2], 9, priority=Priority.BATCH)
    driver.step()
    driver.submit("urgent", [3], 2, priority=Priority.INTERACTIVE)

    assert set(driver.step()) == {"urgent"}
    assert set(driver.step()) == {"old", "urgent"}
    driver.run()
    assert driver.done("young").preemptions == 1
    assert driver.done("old").preemptions == 0


def test_the_latest_is_preempted_when_pages_run_out() -> None:
    driver = Driver(pages=6, budget=20)
    driver.submit("old", [1, 2, 3], 16)
    driver.submit("young", [7, 8, 9], 16)
    driver.run()

    assert driver.done("old").preemptions == 0
    assert driver.done("young").preemptions >= 1
    assert sum(len(o.token_ids) for o in driver.outputs["young"] if isinstance(o, TokenOut)) == 16
    assert driver.memory.used_pages == 0


def test_samples_share_the_prompt_and_copy_what_they_change() -> None:
    driver = Driver()
    driver.submit("a", range(10), n=3)
    assert driver.step() == {"a": 10}
    assert driver.memory.used_pages == 3

    plan = driver.plan()

    # The last holder of the half-filled page writes into it in place.
    assert len(plan.copies) == 2
    assert driver.memory.used_pages == 2 + 3


def test_the_queue_is_bounded_and_preempted_ones_do_not_count() -> None:
    driver = Driver(batch=1, waiting=2)
    driver.submit("running", [1], 9, priority=Priority.BATCH)
    driver.step()
    driver.submit("urgent", [2])
    driver.step()
    driver.submit("b", [3])
    driver.submit("c", [4])

    with pytest.raises(Overloaded):
        driver.submit("d", [5])


def test_an_id_is_served_once_at_a_time() -> None:
    driver = Driver()
    driver.submit("a", [1])

    with pytest.raises(Conflict):
        driver.submit("a", [1])


def test_what_exceeds_the_memory_is_refused_with_both_numbers() -> None:
    driver = Driver(pages=5)
    driver.submit("just fits", range(10), 11)

    with pytest.raises(PromptTooLong, match=r"need 6 KV blocks, and there are 5"):
        driver.submit("a", range(10), 12)


def test_min_tokens_is_about_tokens_kept() -> None:
    driver = Driver()
    driver.submit("a", [5], 6, stop_token_ids=frozenset({1}), min_tokens=3)
    driver.run()

    last = driver.outputs["a"][-2]
    assert isinstance(last, TokenOut)
    assert (last.finish, last.first_position) == (FinishReason.STOP, 3)


def test_times_add_up() -> None:
    driver = Driver(batch=1, budget=8)
    driver.submit("a", range(16), 3)
    driver.submit("b", [90], 2)
    driver.run()

    a, b = driver.done("a"), driver.done("b")
    assert a.queue_s == 0
    assert a.prefill_s == pytest.approx(0.2)
    assert (a.share.prefill_s, a.share.decode_s) == pytest.approx((0.2, 0.2))
    assert a.worker_s == pytest.approx(0.4)
    assert b.queue_s == pytest.approx(0.4)
    assert b.worker_s == pytest.approx(0.2)


def test_a_resumed_request_that_had_all_its_tokens_ends_at_once() -> None:
    driver = Driver()
    driver.submit("a", [1, 2], 2, emitted=[[7, 8]])
    driver.take()

    assert [type(output) for output in driver.outputs["a"]] == [Admitted, TokenOut, RequestDone]
    assert not driver.scheduler.has_work


def test_queued_tokens_count_down_as_chunks_are_computed() -> None:
    driver = Driver(batch=1, budget=8)
    driver.submit("a", range(20))
    driver.submit("b", range(50, 60), n=2)
    assert driver.scheduler.counts().queued_prefill_tokens == 30

    driver.step()

    counts = driver.scheduler.counts()
    assert (counts.queued_prefill_tokens, counts.running, counts.waiting) == (22, 1, 1)


def drafted(driver: Driver, *drafts: int) -> StepPlan:
    """The next plan, where every decoding sequence is offered these drafts."""
    plan = driver.scheduler.plan(driver.now, dict.fromkeys(driver.scheduler.decoding(), drafts))
    assert plan is not None
    driver.scheduler.check_integrity()
    return plan


def test_drafts_are_checked_with_the_token_they_follow() -> None:
    driver = Driver()
    driver.submit("a", [5, 6], 9)
    driver.step()

    (chunk,) = drafted(driver, 7, 8).chunks

    assert (chunk.start, chunk.count, chunk.num_logits) == (2, 3, 3)
    assert list(chunk.tokens) == [1, 7, 8]
    assert chunk.is_decode


def test_tokens_that_stood_are_emitted_and_the_rest_is_computed_anew() -> None:
    driver = Driver()
    driver.submit("a", [5, 6], 9)
    driver.step()
    plan = drafted(driver, 7, 8, 9)
    driver.scheduler.apply(plan, StepResult([Drawn((7, 2))], 0.1), driver.now)
    driver.take()

    last = driver.outputs["a"][-1]
    assert isinstance(last, TokenOut)
    assert (last.first_position, last.token_ids) == (1, (7, 2))
    assert [chunk.start for chunk in driver.plan().chunks] == [4]
    driver.run()
    done = driver.done("a")
    assert (done.drafted_tokens, done.accepted_draft_tokens) == (3, 1)


def test_blocks_are_stored_as_far_as_drafts_stood() -> None:
    driver = Driver()
    driver.submit("a", [5, 6], 20)
    driver.step()
    stood = (10, 11, 12, 13, 14)
    plan = drafted(driver, *stood, 15)
    assert driver.memory.resident_hashes() == set()

    driver.scheduler.apply(plan, StepResult([Drawn((*stood, 9))], 0.1), driver.now)

    assert len(driver.memory.resident_hashes()) == 2


def test_drafts_leave_half_of_the_budget_to_prompts() -> None:
    driver = Driver(budget=11)
    driver.submit("a", [5, 6], 30)
    driver.step()
    driver.submit("b", range(40), 2)

    chunks = drafted(driver, *range(20)).chunks

    assert [chunk.count for chunk in chunks] == [1 + 5, 5]


def test_no_more_is_drafted_than_may_be_emitted() -> None:
    driver = Driver()
    driver.submit("a", [5, 6], 4)
    driver.step()

    (chunk,) = drafted(driver, 1, 2, 3, 4, 5).chunks

    assert len(chunk.drafts) == 2


def test_drafts_preempt_nobody() -> None:
    driver = Driver(pages=4, budget=20)
    driver.submit("a", [5, 6, 7], 12)
    driver.submit("b", [8, 9, 10], 12)
    driver.step()
    before = driver.scheduler.preemptions

    chunks = drafted(driver, *range(8)).chunks

    assert driver.scheduler.preemptions == before
    assert len(chunks) == 2
    assert all(len(chunk.sample.pages) <= 2 for chunk in chunks)


def test_limits_leave_room_for_prefill() -> None:
    with pytest.raises(ValueError, match="nothing for prefill"):
        Limits(max_batch=8, max_batched_tokens=8, max_waiting=1, max_context=10)
