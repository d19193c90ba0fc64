"""The BATCH class has what the others leave: what a step computes of it, and when it sits out."""

import pytest

from penstock_engine.api import EngineRequest, Priority
from penstock_engine.native.scheduling.batch_share import BatchShare
from penstock_engine.native.scheduling.limits import Limits
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Request
from penstock_testing.engines.scheduler_driver import Driver


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


LIMITS = Limits(max_batch=64, max_batched_tokens=4096, max_waiting=8, max_context=8192)
ONLINE, OFFLINE = Priority.INTERACTIVE, Priority.BATCH


def chunk(priority: Priority, count: int | None = None) -> Chunk:
    """A decode step of a sequence, or so many tokens of its prompt."""
    prompt = EngineRequest("r", range(4096), 1, priority=priority)
    sample = Request(prompt, 0, 0.0).samples[0]
    if count is not None:
        return Chunk(sample, 0, count)
    return Chunk(sample, 4096, 1, 1, (sample,))


class Engine:
    """Steps that take what they would: so much a row, so much a token of a prompt, and something for all."""

    def __init__(self, *, row_s: float, token_s: float = 1e-4, alone_s: float = 0.002) -> None:
        self.share = BatchShare(LIMITS)
        self._row_s, self._token_s, self._alone_s = row_s, token_s, alone_s
        self.now = 0.0

    def step(self, *, online: int = 0, offline: int = 0, prompt: int = 0) -> float:
        """Run one; ``prompt`` tokens are of whoever else is in it, BATCH's if nobody. Seconds."""
        chunks = [chunk(ONLINE)] * online + [chunk(OFFLINE)] * offline
        if prompt:
            chunks.append(chunk(ONLINE if online else OFFLINE, prompt))
        seconds = self._alone_s + offline * self._row_s + prompt * self._token_s
        self.now += seconds
        self.share.note(StepPlan(tuple(chunks)), seconds, self.now)
        return seconds

    def learn(self) -> None:
        """See steps of all kinds."""
        for _ in range(20):
            self.step(prompt=2048)
            self.step(online=1)
            self.step(online=1, offline=8)


def test_batch_work_alone_takes_all_it_can_use() -> None:
    engine = Engine(row_s=0.001)
    engine.step(prompt=2048)

    assert engine.share.rows(beside=False) == 64
    assert engine.share.tokens(64) == 1024


@pytest.mark.parametrize(("row_s", "rows"), [(0.001, 8), (0.0005, 16), (0.02, 1), (1e-6, 8_000)])
def test_beside_others_batch_adds_about_8_ms_to_a_step(row_s: float, rows: int) -> None:
    engine = Engine(row_s=row_s)
    engine.learn()

    assert engine.share.rows(beside=True) == pytest.approx(rows, abs=1, rel=0.05)


def test_where_steps_are_long_batch_adds_half_of_one() -> None:
    engine = Engine(row_s=0.01, alone_s=0.2)
    engine.learn()

    assert engine.share.rows(beside=True) == pytest.approx(10, abs=1)


def test_prompts_of_batch_have_what_its_rows_leave_of_the_time() -> None:
    engine = Engine(row_s=0.001, token_s=1e-4)
    engine.learn()

    assert engine.share.tokens(4) == pytest.approx(40, abs=5)
    assert engine.share.tokens(7) == 0
    assert engine.share.tokens(0) == pytest.approx(80, abs=5)


def test_a_prompt_of_batch_never_stands_still_on_a_slow_engine() -> None:
    engine = Engine(row_s=0.1, token_s=0.01)
    engine.learn()

    assert engine.share.tokens(0) == 32


def test_a_while_after_the_others_left_nothing_is_bounded() -> None:
    engine = Engine(row_s=0.02)
    engine.learn()
    assert engine.share.rows(beside=False) == 1

    while engine.now < 30:
        engine.step(offline=8)

    assert engine.share.rows(beside=False) == 64


def test_now_and_then_a_step_goes_without_batch_to_tell_what_it_adds() -> None:
    engine = Engine(row_s=0.001)
    engine.learn()
    sat_out = 0
    for _ in range(650):
        rows = engine.share.rows(beside=True)
        sat_out += not rows
        engine.step(online=1, offline=rows)

    assert sat_out == 10


def test_of_too_many_sequences_of_batch_the_first_ones_decode() -> None:
    def cost_s(plan: StepPlan) -> float:
        return 0.002 + 0.004 * sum(chunk.sample.is_batch for chunk in plan.chunks)

    driver = Driver(budget=64, cost_s=cost_s)
    driver.submit("online", [1, 2], 90, priority=Priority.STANDARD)
    for name in ("first", "second", "third"):
        driver.submit(name, [1, 2], 90, priority=Priority.BATCH)
    for _ in range(20):
        driver.step()

    assert driver.step() == {"online": 1, "first": 1, "second": 1}
    driver.run()
    assert driver.done("third").preemptions == 0


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
