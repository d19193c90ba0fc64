"""Runs the wire requests of one HTTP request and hands their events on as they come."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from penstock.inference.v1 import generate_pb2
from penstock_core.errors import PenstockError
from penstock_gateway.caller import Caller
from penstock_gateway.upstream import RouterClient

MAX_CONCURRENT_PROMPTS = 16

# Takes the number of the prompt and one of its events. A slow sink slows its stream down.
Sink = Callable[[int, generate_pb2.GenerateResponse], Awaitable[None]]


async def generate(
    router: RouterClient,
    requests: Sequence[generate_pb2.GenerateRequest],
    caller: Caller,
    sink: Sink,
) -> None:
    """Run all requests, a few at a time; the first failure ends the others and comes out."""
    for index, request in enumerate(requests):
        request.request_id = caller.request_id + (f"-{index}" if index else "")
    turns = asyncio.Semaphore(MAX_CONCURRENT_PROMPTS)

    async def run(index: int, request: generate_pb2.GenerateRequest) -> None:
        async with turns:
            await _pump(router, request, caller, lambda event: sink(index, event))

    if len(requests) == 1:
        await run(0, requests[0])
        return
    try:
        async with asyncio.TaskGroup() as group:
            for index, request in enumerate(requests):
                group.create_task(run(index, request))
    except* PenstockError as failures:
        raise _first(failures) from None


async def _pump(
    router: RouterClient,
    request: generate_pb2.GenerateRequest,
    caller: Caller,
    take: Callable[[generate_pb2.GenerateResponse], Awaitable[None]],
) -> None:
    events = router.generate(request, caller)
    try:
        async for event in events:
            await take(event)
    finally:
        await events.aclose()


def _first(failures: BaseExceptionGroup[PenstockError]) -> PenstockError:
    first = failures.exceptions[0]
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
