"""Items on their way to the one coroutine that takes them."""

import asyncio

import pytest

from penstock_engine.native.mailbox import Outlet


async def test_items_come_in_order_whether_they_were_there_or_are_waited_for() -> None:
    outlet: Outlet[int] = Outlet(asyncio.get_running_loop())
    outlet.put(1)
    outlet.put(2)
    assert [await outlet.take(), await outlet.take()] == [1, 2]

    taking = asyncio.create_task(outlet.take())
    await asyncio.sleep(0)
    outlet.put(3)
    outlet.put(4)
    assert [await taking, await outlet.take()] == [3, 4]


async def test_who_gives_up_waiting_loses_nothing() -> None:
    outlet: Outlet[int] = Outlet(asyncio.get_running_loop())
    taking = asyncio.create_task(outlet.take())
    await asyncio.sleep(0)
    taking.cancel()
    outlet.put(1)
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert await outlet.take() == 1
