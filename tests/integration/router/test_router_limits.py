"""The limits of a key, counted over two routers that share a real Redis."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from penstock_client import AsyncClient
from penstock_core.errors import QuotaExceeded
from penstock_core.security.auth import digest
from penstock_router.process import running_router
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.processes.redis import RedisServer
from penstock_testing.servers.cluster import DEADLINE_S, DEFAULT_SETTINGS
from penstock_testing.servers.worker import DEFAULT_OPTIONS, running_worker

SECRET = "leases"
Clients = tuple[AsyncClient, AsyncClient]


@asynccontextmanager
async def clients(
    folder: Path, engine: FakeEngine, mode: str, **limits: int
) -> AsyncIterator[Clients]:
    """One caller's clients of two routers before one worker."""
    keys = folder / "keys.json"
    entry = {"sha256": digest("pk"), "tenant": "acme", "limits": limits}
    keys.write_text(json.dumps({"keys": [entry]}), encoding="utf-8")
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer(folder))
        options = replace(DEFAULT_OPTIONS, registry_url=redis.url, lease_secret=SECRET.encode())
        changes = {"registry_url": redis.url, "keys_file": str(keys), "lease_secret": SECRET}
        settings = DEFAULT_SETTINGS.model_copy(update=changes)
        await stack.enter_async_context(running_worker(engine, options=options))
        made = []
        for _ in range(2):
            router = await stack.enter_async_context(running_router(settings))
            client = AsyncClient(router.endpoint, api_key="pk", mode=mode)  # type: ignore[arg-type]
            made.append(await stack.enter_async_context(client))
            async with asyncio.timeout(DEADLINE_S):
                while not router.fleet.states().get("LIVE", 0):
                    await router.fleet.changes.wait(0.05)
        yield made[0], made[1]


async def refused(client: AsyncClient, prompt: str = "hello") -> str:
    """The limit that a request meets; empty if none."""
    try:
        await client.generate(prompt, model="fake", max_tokens=2)
    except QuotaExceeded as error:
        return error.subject
    return ""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Of a short name: Redis listens in it.
    return tmp_path_factory.mktemp("l")


@pytest.mark.parametrize("mode", ["proxy", "lookaside"])
async def test_requests_a_minute_are_those_at_both_routers(folder: Path, mode: str) -> None:
    async with clients(folder, FakeEngine(), mode, requests_per_minute=3) as (one, two):
        answers = [await refused(client) for client in (one, two, one, two, one)]

    assert answers == ["", "", "", "requests_per_minute", "requests_per_minute"]


@pytest.mark.parametrize("mode", ["proxy", "lookaside"])
async def test_tokens_of_one_router_are_missing_at_the_other(folder: Path, mode: str) -> None:
    async with clients(folder, FakeEngine(), mode, tokens_per_minute=60) as (one, two):
        first = await refused(one, "x" * 70)
        second = await refused(two)

    assert (first, second) == ("", "tokens_per_minute")


@pytest.mark.parametrize("mode", ["proxy", "lookaside"])
async def test_a_stream_through_one_router_counts_at_the_other_until_it_ends(
    folder: Path, mode: str
) -> None:
    engine = FakeEngine()
    async with clients(folder, engine, mode, max_concurrency=1) as (one, two):
        engine.hold()
        engine.allow(1)
        stream = one.stream("hello", model="fake", max_tokens=4)
        async with aclosing(stream):
            await anext(stream)
            during = await refused(two)
            engine.release()
            async for _ in stream:
                pass
        async with asyncio.timeout(DEADLINE_S):
            while await refused(two):  # noqa: ASYNC110 - the news takes a moment
                await asyncio.sleep(0.02)

    assert during == "max_concurrency"
