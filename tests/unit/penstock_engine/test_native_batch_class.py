"""The BATCH class has what the others leave: what a step computes of it, and when it sits out."""

import pytest

from penstock_engine.api import EngineRequest, Priority
from penstock_engine.native.scheduling.batch_share import BatchShare
from penstock_engine.native.scheduling.limits import Limits
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Request
from penstock_testing.scheduler_driver import Driver


def test_batch_work_sits_out_while_another_class_prefills_and_keeps_its_pages() -> None:
    driver = Driver(budget=16)
    driver.submit("offline", [1, 2], priority=Priority.BATCH)
    driver.step()
    driver.submit("online", range(20), priority=Priority.INTERACTIVE)

    assert driver.step() == {"online": 16}
    assert driver.step() == {"online": 4}
    assert driver.step() == {"online": 1, "offline": 1}
    driver.run()
    assert driver.done("offline").preemptions == 0


def test_a_batch_prompt_leaves_a_step_short_for_whoever_comes_next() -> None:
    driver = Driver(budget=48)
    driver.submit("offline", range(10), priority=Priority.BATCH)

    assert [driver.step()["offline"] for _ in range(3)] == [4, 4, 2]


def test_batch_prompts_share_one_short_chunk_beside_others_decodes() -> None:
    driver = Driver(budget=48)
    driver.submit("online", [1, 2], priority=Priority.STANDARD)
    driver.step()
    driver.submit("first", range(10, 13), priority=Priority.BATCH)
    driver.submit("second", range(20, 25), priority=Priority.BATCH)

    assert driver.step() == {"online": 1, "first": 3, "second": 1}


def test_a_batch_prompt_half_computed_sits_out_too() -> None:
    driver = Driver(budget=16)
    driver.submit("offline", range(10), priority=Priority.BATCH)
    driver.step()
    driver.submit("online", range(50, 58))

    assert driver.step() == {"online": 8}
    assert driver.step() == {"online": 1, "offline": 1}


@pytest.mark.parametrize(
    ("tokens_per_s", "allowed"), [(100.0, 32), (4_000.0, 60), (20_000.0, 300), (1e6, 1024)]
)
def test_a_batch_prompt_fills_no_more_of_a_step_than_takes_15_ms(
    tokens_per_s: float, allowed: int
) -> None:
    limits = Limits(max_batch=8, max_batched_tokens=4096, max_waiting=8, max_context=8192)
    share = BatchShare(limits)
    prompt = EngineRequest("r", range(2048), 1)
    plan = StepPlan((Chunk(Request(prompt, 0, 0.0).samples[0], 0, 2048),))
    for _ in range(50):
        share.note(plan, 2048 / tokens_per_s)
    assert share.tokens == allowed


def test_queued_tokens_of_batch_are_told_apart() -> None:
    driver = Driver(batch=2, budget=16)
    driver.submit("online", range(40))
    driver.submit("offline", range(50, 60), priority=Priority.BATCH)
    driver.submit("later", range(60, 65), priority=Priority.BATCH)
    driver.plan()

    counts = driver.scheduler.counts()
    assert (counts.queued_prefill_tokens, counts.queued_batch_tokens) == (55, 15)
    driver.run()
    assert driver.scheduler.counts().queued_batch_tokens == 0


def test_no_drafts_are_asked_for_while_batch_work_sits_out() -> None:
    driver = Driver(budget=24)
    driver.submit("offline", [1, 2], priority=Priority.BATCH)
    driver.step()
    assert [s.request.spec.request_id for s in driver.scheduler.decoding()] == ["offline"]
    driver.submit("online", range(40))
    driver.step()

    assert driver.scheduler.decoding() == []
