"""A stream that stands still is noticed; one that is merely slow, or slowly read, is not."""

import asyncio

from penstock_core.rpc.stalls import STALL_FLOOR_S, StallWatch

FLOOR_S = 0.1


async def test_a_silent_stream_is_given_up_once() -> None:
    given_up = asyncio.Event()
    calls: list[float] = []

    def give_up() -> bool:
        calls.append(asyncio.get_running_loop().time())
        given_up.set()
        return True

    watch = StallWatch(give_up, floor_s=FLOOR_S)
    began = asyncio.get_running_loop().time()
    watch.waits()
    async with asyncio.timeout(5):
        await given_up.wait()
    await asyncio.sleep(3 * FLOOR_S)
    watch.close()
    assert len(calls) == 1
    assert calls[0] - began > FLOOR_S


async def test_it_asks_again_while_nobody_else_can_go_on() -> None:
    twice = asyncio.Event()
    calls = 0

    def give_up() -> bool:
        nonlocal calls
        calls += 1
        if calls == 2:
            twice.set()
        return False

    watch = StallWatch(give_up, floor_s=FLOOR_S)
    watch.waits()
    async with asyncio.timeout(5):
        await twice.wait()
    watch.close()


async def test_a_slow_reader_stalls_nobody() -> None:
    given_up = asyncio.Event()

    def give_up() -> bool:
        given_up.set()
        return True

    watch = StallWatch(give_up, floor_s=FLOOR_S)
    watch.waits()
    watch.got()
    await asyncio.sleep(4 * FLOOR_S)
    watch.close()
    assert not given_up.is_set()


async def test_the_limit_is_ten_times_the_streams_own_pace_but_at_least_five_seconds() -> None:
    usual = StallWatch(lambda: True)
    assert usual.limit_s == STALL_FLOOR_S == 5.0
    slow = StallWatch(lambda: True, floor_s=FLOOR_S)
    for _ in range(3):
        slow.waits()
        await asyncio.sleep(0.05)
        slow.got()
    assert slow.limit_s >= 10 * 0.05
    usual.close()
    slow.close()
