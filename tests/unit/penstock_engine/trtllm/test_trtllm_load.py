"""Places, counts, shares and figures of the TensorRT-LLM engine."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from types import SimpleNamespace

import pytest

from penstock_core.errors import Overloaded
from penstock_engine.trtllm.admission import Admission
from penstock_engine.trtllm.figures import IterationFigures, Rates, RequestFigures
from penstock_engine.trtllm.load import Load, Waiting
from penstock_engine.trtllm.pump import Pump

NOBODY = Waiting(0, 0)


async def test_places_go_to_the_best_class_then_to_who_came_first() -> None:
    admission = Admission(1, 10)
    first = admission.enter((3, 1, 0))
    later = [admission.enter(rank) for rank in ((3, 2, 0), (1, 4, 0), (1, 3, 0))]
    order = []
    for _ in later:
        admission.leave()
        order += [i for i, place in enumerate(later) if place.done() and i not in order]

    assert first.result()
    assert order == [2, 1, 0]


async def test_who_gives_up_takes_no_place() -> None:
    admission = Admission(1, 10)
    admission.enter((0, 1, 0))
    gives_up, stays = admission.enter((0, 2, 0)), admission.enter((0, 3, 0))
    gives_up.set_result(False)

    assert admission.num_waiting == 1
    admission.leave()
    assert stays.result()


async def test_the_queue_is_bounded() -> None:
    admission = Admission(1, 1)
    admission.check_room()
    admission.enter((0, 1, 0))
    admission.check_room()
    admission.enter((0, 2, 0))

    with pytest.raises(Overloaded):
        admission.check_room()


def test_time_in_the_engine_is_shared_by_who_is_in_it() -> None:
    load = Load(32)
    a = load.enter(10, 0.0)
    b = load.enter(10, 2.0)

    assert load.leave(a, 4.0).seconds == pytest.approx(3.0)
    assert load.leave(b, 5.0).seconds == pytest.approx(2.0)
    load.enter(10, 100.0)
    assert load.state(NOBODY, 0, 101.0).busy_s == pytest.approx(6.0)


def test_a_long_prompt_takes_more_of_the_time_than_a_decode() -> None:
    load = Load(32, step_tokens=99)
    decodes = load.enter(10, 0.0)
    load.heard(decodes, 1, 1.0)
    prefills = load.enter(5000, 1.0)

    share = load.leave(decodes, 2.0)
    assert (share.prefill_s, share.decode_s) == pytest.approx((1.0, 0.01))
    assert load.leave(prefills, 2.0).prefill_s == pytest.approx(0.99)


def test_our_own_counts_come_first() -> None:
    load = Load(32)
    resident = load.enter(70, 0.0)
    before = load.state(Waiting(2, 500), 10, 0.0)
    load.heard(resident, 5, 1.0)
    after = load.state(NOBODY, 10, 1.0)
    load.leave(resident, 2.0)
    idle = load.state(NOBODY, 10, 2.0)

    assert (before.running, before.waiting, before.queued_prefill_tokens) == (1, 2, 570)
    assert before.figures_age_s is None
    assert (after.queued_prefill_tokens, after.context_tokens, after.used_blocks) == (0, 75, 3)
    assert after.cached_blocks == 7
    assert (idle.running, idle.used_blocks, idle.cached_blocks) == (0, 0, 10)


def test_the_engines_figures_count_while_they_are_fresh() -> None:
    load = Load(32)
    load.enter(70, 0.0)
    load.note(IterationFigures(used_blocks=20), 0.0)

    fresh, stale = load.state(NOBODY, 30, 0.5), load.state(NOBODY, 30, 5.0)

    assert (fresh.used_blocks, fresh.cached_blocks, fresh.figures_age_s) == (20, 10, 0.5)
    assert (stale.used_blocks, stale.figures_age_s) == (3, 5.0)


def test_silence_is_measured_only_while_requests_run() -> None:
    load = Load(32)
    assert load.silence_s(50.0) == 0
    resident = load.enter(1, 50.0)
    assert load.silence_s(60.0) == 10
    load.heard(resident, 1, 60.0)
    assert load.silence_s(61.0) == 1
    load.note(IterationFigures(), 61.0)
    assert load.silence_s(61.0) == 0


def test_iterations_give_rates_by_their_kind() -> None:
    rates = Rates()
    rates.note(IterationFigures(0.5, num_context_tokens=1000), 1.0)
    rates.note(IterationFigures(0.01, num_generating=4, num_paused=2, tokens_per_step=2.0), 2.0)
    rates.note(IterationFigures(0.01, num_generating=4, num_paused=3), 3.0)

    assert rates.prefill_tokens_per_s == 2000
    assert rates.step_s == pytest.approx(0.01)
    assert rates.tokens_per_step == pytest.approx(1.1)
    assert rates.preemptions == 3
    assert rates.age_s(3.5) == 0.5


def test_iteration_figures_are_read_by_their_names() -> None:
    stats = {
        "iterLatencyMS": 12.5,
        "kvCacheStats": {"maxNumBlocks": 100, "usedNumBlocks": 7},
        "inflightBatchingStats": {"numCtxTokens": 30, "numGenRequests": 2, "numPausedRequests": 1},
        "specDecStats": {"acceptanceLength": 2.5},
    }

    assert IterationFigures.of(stats) == IterationFigures(0.0125, 30, 2, 1, 2.5, 7, 100)
    assert (
        IterationFigures.of({"kvCacheStats": None, "iterLatencyMS": "fast"}) == IterationFigures()
    )
    assert IterationFigures.of("nothing") == IterationFigures()


def test_request_figures_are_durations() -> None:
    timing = SimpleNamespace(
        arrival_time=timedelta(seconds=5),
        first_scheduled_time=timedelta(seconds=5.5),
        first_token_time=timedelta(seconds=7),
    )
    drafts = SimpleNamespace(total_draft_tokens=8, total_accepted_draft_tokens=6)

    told = RequestFigures.of(SimpleNamespace(timing_metrics=timing, speculative_decoding=drafts))

    assert told == RequestFigures(0.5, 1.5, 8, 6)


def test_request_figures_that_are_not_told_are_none() -> None:
    unset = SimpleNamespace(arrival_time=timedelta(0), first_scheduled_time=None)

    assert RequestFigures.of(None) == RequestFigures()
    assert RequestFigures.of(SimpleNamespace(timing_metrics=unset)) == RequestFigures()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (RequestFigures(), (12, 9)),
        (RequestFigures(drafted_tokens=0, accepted_draft_tokens=0), (12, 9)),
        (RequestFigures(drafted_tokens=8, accepted_draft_tokens=6), (8, 6)),
    ],
)
def test_drafts_that_are_not_told_are_counted_from_steps(
    told: RequestFigures, expected: tuple[int, int]
) -> None:
    counted = told.with_drafts(14, 5, 3)  # a prompt's step and four with three drafts each

    assert (counted.drafted_tokens, counted.accepted_draft_tokens) == expected
    assert told.with_drafts(14, 5, 0) == told  # without speculation
    assert told.with_drafts(14, 0, 3) == told  # or steps that nobody told of


class Reads:
    """A stream that gives what lies there and ends; ``asked`` counts."""

    def __init__(self, *rounds: list[object] | Exception) -> None:
        self.rounds = list(rounds)
        self.asked = 0
        self.changed = asyncio.Event()

    async def __call__(self, _timeout: float) -> AsyncIterator[object]:
        self.asked += 1
        self.changed.set()
        for item in self._next():
            yield item

    def _next(self) -> list[object]:
        found = self.rounds.pop(0) if self.rounds else []
        if isinstance(found, Exception):
            raise found
        return found


async def test_a_pump_reads_on_after_an_end_and_after_an_error() -> None:
    reads = Reads([1, 2], [], ValueError("broken"), [3])
    taken: asyncio.Queue[object] = asyncio.Queue()
    lost: list[Exception] = []
    pump = Pump(reads, taken.put_nowait, lost.append)
    task = asyncio.create_task(pump.run())
    async with asyncio.timeout(10):
        found = [await taken.get() for _ in range(3)]
    task.cancel()

    assert found == [1, 2, 3]
    assert [str(error) for error in lost] == ["broken"]


async def test_an_idle_pump_asks_seldom_and_at_once_when_poked() -> None:
    reads = Reads()
    pump = Pump(reads, lambda _: None, lambda _: None)
    task = asyncio.create_task(pump.run())
    async with asyncio.timeout(10):
        while reads.asked < 5:
            await reads.changed.wait()
            reads.changed.clear()
            pump.poke()
    task.cancel()
    assert reads.asked == 5
