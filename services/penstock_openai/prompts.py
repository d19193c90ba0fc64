"""Runs the requests of one body side by side. Knows neither what runs them nor their events."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from penstock.inference.v1 import generate_pb2
from penstock_core.errors import PenstockError

MAX_CONCURRENT_PROMPTS = 16


async def run_prompts(
    requests: Sequence[generate_pb2.GenerateRequest],
    run: Callable[[int, generate_pb2.GenerateRequest], Awaitable[None]],
) -> None:
    """Run all requests, a few at a time; the first failure ends the others and comes out."""
    if len(requests) == 1:
        await run(0, requests[0])
        return
    turns = asyncio.Semaphore(MAX_CONCURRENT_PROMPTS)

    async def in_turn(index: int, request: generate_pb2.GenerateRequest) -> None:
        async with turns:
            await run(index, request)

    failure: PenstockError | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for index, request in enumerate(requests):
                group.create_task(in_turn(index, request))
    except* PenstockError as failures:
        failure = _first(failures)
    if failure is not None:  # raised there, early releases of Python 3.11 would wrap it in a group
        raise failure


def _first(failures: BaseExceptionGroup[PenstockError]) -> PenstockError:
    first = failures.exceptions[0]
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
