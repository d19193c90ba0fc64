"""Runs the wire requests of one HTTP request and hands their events on as they come."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

from penstock.inference.v1 import generate_pb2
from penstock_gateway.caller import Caller
from penstock_gateway.upstream import RouterClient
from penstock_openai.prompts import run_prompts

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

    async def run(index: int, request: generate_pb2.GenerateRequest) -> None:
        async with aclosing(router.generate(request, caller)) as events:
            async for event in events:
                await sink(index, event)

    await run_prompts(requests, run)
