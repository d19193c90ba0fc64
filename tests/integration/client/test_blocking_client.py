"""The blocking client: the same behaviour without an event loop of the caller's."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from penstock_client import Client, Completed, Delta, Generation, Started, StreamEvent
from penstock_client.blocking import LoopThread
from penstock_core.errors import ModelNotFound
from penstock_testing.servers.scripted_fleet import API_KEY, FleetFactory, Script

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """The servers of these tests live on this loop, so the blocking side gets a thread."""
    return await asyncio.to_thread(work)


async def test_generate_returns_the_whole(fleet: FleetFactory) -> None:
    running = await fleet(Script())

    def work() -> Generation:
        with Client(running.target, api_key=API_KEY) as client:
            return client.generate("hello", max_tokens=3)

    assert (await in_thread(work)).text == "0 1 2 "


async def test_stream_is_a_plain_iterator_of_events(fleet: FleetFactory) -> None:
    running = await fleet(Script())

    def work() -> list[StreamEvent]:
        with Client(running.target, api_key=API_KEY) as client:
            return list(client.stream("hello"))

    events = await in_thread(work)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Completed)


async def test_leaving_the_loop_ends_the_request_on_the_worker(fleet: FleetFactory) -> None:
    running = await fleet(Script(hangs=True))

    def work() -> None:
        with Client(running.target, api_key=API_KEY) as client:
            events = client.stream("hello")
            for event in events:
                if isinstance(event, Delta):
                    break
            events.close()

    await in_thread(work)
    async with asyncio.timeout(5):
        await running.workers[0].ended.wait()


async def test_errors_come_out_typed(fleet: FleetFactory) -> None:
    running = await fleet(Script())

    def work() -> None:
        with Client(running.target, api_key=API_KEY, mode="proxy") as client:
            client.generate("hello", model="unknown")

    with pytest.raises(ModelNotFound):
        await in_thread(work)


async def test_other_calls_answer_and_close_leaves_no_thread(fleet: FleetFactory) -> None:
    running = await fleet(Script())

    def work() -> str:
        with Client(running.target, api_key=API_KEY) as client:
            assert client.tokenize("ab") == [97, 98]
            assert client.detokenize([1]) == "1"
            assert [model.name for model in client.models()] == ["demo"]
            assert len(client.workers()) == 1
            return client.explain(decision_id="dec_1").decision.decision_id

    assert await in_thread(work) == "dec_1"
    assert "penstock-client" not in {thread.name for thread in threading.enumerate()}


def test_ctrl_c_just_after_a_read_was_handed_over_still_ends_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def hangs() -> AsyncGenerator[int, None]:
        try:
            begun.set()
            await asyncio.Event().wait()
            yield 0
        finally:
            ended.set()

    def interrupted(work: Coroutine[Any, Any, int], loop: asyncio.AbstractEventLoop) -> None:
        handed_over(work, loop)
        assert begun.wait(5)
        monkeypatch.undo()
        raise KeyboardInterrupt

    loop = LoopThread()
    handed_over = asyncio.run_coroutine_threadsafe
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(loop.iterate(hangs()))
    assert ended.is_set()
    loop.close()
