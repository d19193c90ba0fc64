"""When responses are sent: the first at once, later ones together, none later than agreed."""

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from penstock.common.v1 import sampling_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.rpc.ticks import TICK_S
from penstock_worker.generation.outbox import (
    COALESCE_S,
    COALESCE_TOKENS,
    Bounds,
    Outbox,
    Paces,
    Ticks,
)

NEVER_S = 3600.0


async def is_ready(outbox: Outbox) -> bool:
    """Whether it is time to send, without waiting for the clock."""
    task = asyncio.create_task(outbox.ready())
    for _ in range(5):
        await asyncio.sleep(0)
    done = task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return done


async def test_the_first_token_goes_at_once() -> None:
    outbox = Outbox(Bounds(NEVER_S), Ticks())

    outbox.tokens(1)

    assert await is_ready(outbox)


async def test_nothing_is_sent_while_there_is_nothing() -> None:
    assert not await is_ready(Outbox(Bounds(NEVER_S), Ticks()))


async def test_the_admission_does_not_delay_the_first_token() -> None:
    outbox = Outbox(Bounds(NEVER_S), Ticks())
    outbox.now()
    await outbox.ready()

    outbox.tokens(1)

    assert await is_ready(outbox)


async def test_tokens_right_after_a_message_wait_for_company() -> None:
    outbox = Outbox(Bounds(NEVER_S), Ticks())
    outbox.tokens(1)
    await outbox.ready()

    outbox.tokens(COALESCE_TOKENS - 1)
    early = await is_ready(outbox)
    outbox.tokens(COALESCE_TOKENS)

    assert not early
    assert await is_ready(outbox)


async def test_an_end_waits_for_nothing() -> None:
    outbox = Outbox(Bounds(NEVER_S), Ticks())
    outbox.tokens(1)
    await outbox.ready()

    outbox.tokens(1)
    outbox.now()

    assert await is_ready(outbox)


async def test_no_token_waits_longer_than_agreed() -> None:
    outbox = Outbox(Bounds(0.001), Ticks())
    outbox.tokens(1)
    await outbox.ready()

    outbox.tokens(1)

    async with asyncio.timeout(10):
        await outbox.ready()


class HandTicks(Ticks):
    """Ticks that come when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[int, list[Callable[[], None]]] = {}

    def call_at(self, tick: int, call: Callable[[], None]) -> None:
        self.asked.setdefault(tick, []).append(call)

    def fire(self, tick: int) -> None:
        for call in self.asked.pop(tick):
            call()


async def test_streams_that_may_wait_send_at_the_same_ticks_and_not_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks, now_s = HandTicks(), 1000 * TICK_S
    waiting, due_s = [], []
    with monkeypatch.context() as patched:
        patched.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
        for _ in range(8):
            now_s += TICK_S / 10
            outbox = Outbox(Bounds(5 * TICK_S), ticks)
            outbox.tokens(1)
            await outbox.ready()
            outbox.tokens(1)
            waiting.append(asyncio.create_task(outbox.ready()))
            due_s.append(now_s + 5 * TICK_S)
            await asyncio.sleep(0)
        asked = list(ticks.asked)
        assert len(asked) <= 2, "they began within one tick"
        assert max(asked) * TICK_S <= max(due_s) + TICK_S / 5, "a token would be too late"
        assert min(asked) * TICK_S > min(due_s) - TICK_S, "a message would be too early"
        assert not any(task.done() for task in waiting)
        for tick in asked:
            ticks.fire(tick)
        await asyncio.gather(*waiting)


async def test_a_tick_that_is_not_waited_for_any_more_sends_nothing() -> None:
    ticks = HandTicks()
    outbox = Outbox(Bounds(5 * TICK_S), ticks)
    outbox.tokens(1)
    await outbox.ready()
    outbox.tokens(1)
    waiting = asyncio.create_task(outbox.ready())
    await asyncio.sleep(0)
    outbox.now()
    await waiting
    outbox.tokens(1)

    ticks.fire(*ticks.asked)

    assert not await is_ready(outbox)


async def test_ticks_call_all_who_asked_for_one_and_in_order() -> None:
    ticks, called = Ticks(), asyncio.Queue[str]()
    soon = int(asyncio.get_running_loop().time() / TICK_S) + 1
    for tick, name in ((soon + 1, "later"), (soon, "first"), (soon, "second")):
        ticks.call_at(tick, partial(called.put_nowait, name))

    async with asyncio.timeout(10):
        assert [await called.get() for _ in range(3)] == ["first", "second", "later"]


async def test_a_slow_stream_is_not_slowed_further(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(Bounds(0.0), Ticks())
    outbox.tokens(1)
    await outbox.ready()

    outbox.tokens(1)

    assert await is_ready(outbox), "the last message was long ago"


def asking(delay_ms: int, group: str = "") -> generate_pb2.GenerateRequest:
    asked = generate_pb2.Coalescing(max_delay_ms=delay_ms, max_tokens=32, group=group)
    return generate_pb2.GenerateRequest(coalescing=asked)


async def test_what_the_latest_stream_of_a_group_allows_holds_for_those_that_run() -> None:
    paces = Paces()
    outbox = Outbox(paces.of(asking(0, "router")), paces.ticks)
    outbox.tokens(1)
    await outbox.ready()

    later = paces.of(asking(1000, "router"))
    outbox.tokens(1)

    assert not await is_ready(outbox), "it waits as long as the other by now"
    assert (later.delay_s, later.tokens) == (1.0, 32)


def test_streams_of_no_group_keep_what_they_asked_for() -> None:
    paces = Paces()
    alone, shared = paces.of(asking(20)), paces.of(asking(30, "a"))

    paces.of(asking(500))
    other = paces.of(asking(700, "b"))

    assert (alone.delay_s, shared.delay_s, other.delay_s) == (0.02, 0.03, 0.7)
    assert paces.of(generate_pb2.GenerateRequest()).delay_s == COALESCE_S


def test_a_group_without_streams_is_forgotten() -> None:
    paces = Paces()
    kept = paces.of(asking(500, "router"))
    assert paces.of(asking(500, "router")) is kept

    del kept

    assert paces.num_groups == 0


@pytest.mark.parametrize("asks", [True, False])
def test_batch_work_sends_seldom_unless_it_asks_for_more(asks: bool) -> None:
    request = generate_pb2.GenerateRequest(priority=sampling_pb2.PRIORITY_CLASS_BATCH)
    if asks:
        request.coalescing.max_delay_ms = 20

    bounds = Paces().of(request)

    assert bounds == (Bounds(0.020, 1) if asks else Bounds(1.0, 64))
