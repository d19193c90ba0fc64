"""When responses are sent: the first at once, later ones together, none later than agreed."""

import asyncio

import pytest

from penstock.inference.v1 import generate_pb2
from penstock_worker.outbox import COALESCE_S, COALESCE_TOKENS, TICK_S, Bounds, Outbox, Paces, Ticks

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


async def test_streams_that_may_wait_send_at_the_same_ticks_and_not_too_late() -> None:
    loop, ticks = asyncio.get_running_loop(), Ticks()
    sent: list[tuple[float, float]] = []

    async def stream(starts_in: float) -> None:
        await asyncio.sleep(starts_in)
        outbox = Outbox(Bounds(5 * TICK_S), ticks)
        outbox.tokens(1)
        await outbox.ready()
        outbox.tokens(1)
        began = loop.time()
        await outbox.ready()
        sent.append((loop.time() // TICK_S, loop.time() - began))

    await asyncio.gather(*(stream(number * TICK_S / 10) for number in range(8)))

    assert len({tick for tick, _ in sent}) <= 2, "they began within one tick"
    assert all(waited > 3 * TICK_S for _, waited in sent)


async def test_a_tick_that_is_not_waited_for_any_more_sends_nothing() -> None:
    outbox = Outbox(Bounds(TICK_S), Ticks())
    outbox.tokens(1)
    await outbox.ready()
    outbox.tokens(1)
    waiting = asyncio.create_task(outbox.ready())
    await asyncio.sleep(0)
    outbox.now()
    await waiting

    await asyncio.sleep(2 * TICK_S)

    assert not await is_ready(outbox)


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
