"""Many things at once: bounded, in order, and a failure comes out as it is."""

import asyncio

import pytest

from penstock_core.errors import InvalidRequest
from penstock_core.side_by_side import side_by_side


async def test_answers_keep_the_order_and_no_more_run_than_may() -> None:
    running, most = 0, 0

    async def work(index: int, item: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(10 - index):
            await asyncio.sleep(0)
        running -= 1
        return f"{index}{item}"

    assert await side_by_side("abcdefg", work, 3) == ["0a", "1b", "2c", "3d", "4e", "5f", "6g"]
    assert most == 3


async def test_the_first_failure_comes_out_bare_and_ends_the_others() -> None:
    ended: list[int] = []

    async def work(index: int, _item: int) -> None:
        if index == 1:
            raise InvalidRequest("wrong", field="prompt")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(index)

    with pytest.raises(InvalidRequest, match="wrong"):
        await side_by_side(range(3), work, 3)
    assert sorted(ended) == [0, 2]
