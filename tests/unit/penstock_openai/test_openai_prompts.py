"""Several prompts of one body run side by side and fail as one."""

import asyncio

import pytest

from penstock.inference.v1 import generate_pb2
from penstock_core.errors import NoWorker
from penstock_openai.prompts import MAX_CONCURRENT_PROMPTS, run_prompts


def requests(count: int) -> list[generate_pb2.GenerateRequest]:
    return [generate_pb2.GenerateRequest(text=str(n)) for n in range(count)]


async def test_every_prompt_runs_once_and_only_a_few_at_a_time() -> None:
    seen: dict[int, str] = {}
    open_now = most = 0

    async def run(index: int, request: generate_pb2.GenerateRequest) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)
        seen[index] = request.text
        open_now -= 1

    await run_prompts(requests(40), run)

    assert seen == {n: str(n) for n in range(40)}
    assert most == MAX_CONCURRENT_PROMPTS


@pytest.mark.parametrize("count", [1, 3])
async def test_the_first_failure_ends_the_others_and_comes_out_itself(count: int) -> None:
    ended = []

    async def run(index: int, request: generate_pb2.GenerateRequest) -> None:
        if index == count - 1:
            raise NoWorker("none")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(index)

    with pytest.raises(NoWorker, match="none"):
        await run_prompts(requests(count), run)

    assert sorted(ended) == list(range(count - 1))
