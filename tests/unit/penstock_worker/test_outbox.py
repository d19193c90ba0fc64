"""When responses are sent: the first at once, later ones together, none later than agreed."""

import asyncio

import pytest

from penstock_worker.outbox import COALESCE_TOKENS, Outbox

NEVER_S = 3600.0


async def is_ready(outbox: Outbox) -> bool:
    """Whether it is time to send, without waiting for the clock."""
    task = asyncio.create_task(outbox.ready())
    for _ in range(5):
        await asyncio.sleep(0)
    done = task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return done


async def test_the_first_token_goes_at_once() -> None:
    outbox = Outbox(NEVER_S)

    outbox.tokens(1)

    assert await is_ready(outbox)


async def test_nothing_is_sent_while_there_is_nothing() -> None:
    assert not await is_ready(Outbox(NEVER_S))


async def test_the_admission_does_not_delay_the_first_token() -> None:
    outbox = Outbox(NEVER_S)
    outbox.now()
    await outbox.ready()

    outbox.tokens(1)

    assert await is_ready(outbox)


async def test_tokens_right_after_a_message_wait_for_company() -> None:
    outbox = Outbox(NEVER_S)
    outbox.tokens(1)
    await outbox.ready()

    outbox.tokens(COALESCE_TOKENS - 1)
    early = await is_ready(outbox)
    outbox.tokens(COALESCE_TOKENS)

    assert not early
    assert await is_ready(outbox)


async def test_an_end_waits_for_nothing() -> None:
    outbox = Outbox(NEVER_S)
    outbox.tokens(1)
    await outbox.ready()

    outbox.tokens(1)
    outbox.now()

    assert await is_ready(outbox)


async def test_no_token_waits_longer_than_agreed() -> None:
    outbox = Outbox(0.001)
    outbox.tokens(1)
    await outbox.ready()

    outbox.tokens(1)

    async with asyncio.timeout(10):
        await outbox.ready()


async def test_a_slow_stream_is_not_slowed_further(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(0.0)
    outbox.tokens(1)
    await outbox.ready()

    outbox.tokens(1)

    assert await is_ready(outbox), "the last message was long ago"
