import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from penstock_batch.queue.loop import LoopThread
from penstock_core.errors import Draining


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    made = LoopThread()
    made.start()
    yield made
    made.drain()
    made.close()


def test_a_coroutines_result_comes_back_to_the_thread_that_waits(loop: LoopThread) -> None:
    async def work() -> str:
        return threading.current_thread().name

    assert loop.run(work()) == "loop"


def test_a_coroutines_error_comes_back_too(loop: LoopThread) -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        loop.run(work())


def test_draining_ends_what_runs_and_refuses_more(loop: LoopThread) -> None:
    started, freed = threading.Event(), threading.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            freed.set()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(loop.run, work())
        assert started.wait(10)
        loop.drain()
        with pytest.raises(Draining):
            running.result(10)
    assert freed.wait(10)
    with pytest.raises(Draining):
        loop.run(work())
