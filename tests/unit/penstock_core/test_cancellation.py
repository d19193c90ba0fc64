"""A cancellation that a library swallowed still ends the task."""

import asyncio

import pytest

from penstock_core.rpc.cancellation import heeded_cancellation


async def deaf(started: asyncio.Event, failure: Exception | None = None) -> None:
    """Waits, and takes a cancellation for the end of the wait."""
    try:
        started.set()
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if failure:
            raise failure from None


@pytest.mark.parametrize("failure", [None, OSError("reset")])
async def test_a_swallowed_cancellation_comes_out(failure: Exception | None) -> None:
    started, went_on = asyncio.Event(), False

    async def work() -> None:
        nonlocal went_on
        with heeded_cancellation():
            await deaf(started, failure)
        went_on = True

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not went_on


async def test_what_cleans_up_after_a_cancellation_may_still_call() -> None:
    started, cleaned = asyncio.Event(), False

    async def work() -> None:
        nonlocal cleaned
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            with heeded_cancellation():
                await asyncio.sleep(0)
            cleaned = True

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert cleaned


async def test_a_deadline_around_a_deaf_call_is_kept() -> None:
    async def work() -> None:
        with heeded_cancellation():
            await deaf(asyncio.Event())

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(work(), 0.01)


async def test_a_failure_comes_out_as_it_is() -> None:
    with pytest.raises(OSError, match="reset"), heeded_cancellation():
        raise OSError("reset")
