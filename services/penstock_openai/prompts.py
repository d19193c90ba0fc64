"""Runs the requests of one body side by side. Knows neither what runs them nor their events."""

from collections.abc import Awaitable, Callable, Sequence

from penstock.inference.v1 import generate_pb2
from penstock_core.side_by_side import side_by_side

MAX_CONCURRENT_PROMPTS = 16


async def run_prompts(
    requests: Sequence[generate_pb2.GenerateRequest],
    run: Callable[[int, generate_pb2.GenerateRequest], Awaitable[None]],
) -> None:
    """Run all requests, a few at a time; the first failure ends the others and comes out."""
    if len(requests) == 1:
        await run(0, requests[0])
        return
    await side_by_side(requests, run, MAX_CONCURRENT_PROMPTS)
