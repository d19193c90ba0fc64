import asyncio
from typing import Any

import pytest

from penstock_batch.planning.records import Answer
from penstock_batch.running import finalizer
from penstock_batch.running.finalizer import Spool
from penstock_core.errors import InternalError
from penstock_testing.servers.batch import parsed


def answer(number: int, *, is_error: bool = False) -> Answer:
    return Answer(number, f"id-{number}", is_error, {"n": number, "text": "x" * 50})


async def numbers(spool: Spool, *, errors: bool) -> list[Any]:
    data = b"".join([piece async for piece in spool.lines(errors=errors)])
    return [line["n"] for line in parsed(data)]


@pytest.mark.parametrize("spool_bytes", [100, 10**6], ids=["on disk", "in memory"])
async def test_lines_come_out_in_input_order_however_they_went_in(
    monkeypatch: pytest.MonkeyPatch, spool_bytes: int
) -> None:
    monkeypatch.setattr(finalizer, "_SPOOL_BYTES", spool_bytes)
    monkeypatch.setattr(finalizer, "_CHUNK_BYTES", 128)
    spool = Spool(20)
    for order in (range(20, 0, -2), range(1, 20, 2)):
        answers = [answer(n, is_error=n % 5 == 0) for n in order]
        await asyncio.to_thread(spool.add, answers)
    spool.check()
    assert await numbers(spool, errors=True) == [5, 10, 15, 20]
    assert await numbers(spool, errors=False) == [n for n in range(1, 21) if n % 5]
    assert (spool.count(errors=True), spool.count(errors=False)) == (4, 16)
    spool.close()


@pytest.mark.parametrize("wrong", [1, 0, 3])
def test_a_line_that_is_answered_twice_or_does_not_exist_is_a_defect(wrong: int) -> None:
    spool = Spool(2)
    spool.add([answer(1)])
    with pytest.raises(InternalError, match=f"line {wrong}"):
        spool.add([answer(wrong)])
    spool.close()


def test_a_line_without_an_answer_is_a_defect() -> None:
    spool = Spool(3)
    spool.add([answer(1), answer(3)])
    with pytest.raises(InternalError, match="line 2 has no answer"):
        spool.check()
    spool.close()
