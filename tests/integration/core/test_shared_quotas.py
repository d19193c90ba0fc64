"""Several processes apply one limit together, over a real Redis; without it each for itself."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock_core.errors import QuotaExceeded
from penstock_core.security.auth import Limits, Principal
from penstock_core.security.quota_store import KEPT_S, QuotaStore, Settlement
from penstock_core.security.quotas import Claim
from penstock_core.security.shared_quotas import SharedQuotas
from penstock_testing.processes.redis import RedisServer, redis_server


def caller(account: str, **limits: int) -> Principal:
    return Principal("acme", account=account, limits=Limits(**limits))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@asynccontextmanager
async def routers(url: str, count: int = 2) -> AsyncIterator[list[SharedQuotas]]:
    made = [SharedQuotas(time.monotonic, QuotaStore(url)) for _ in range(count)]
    try:
        yield made
    finally:
        for one in made:
            await one.close()


@asynccontextmanager
async def store(url: str, kept_s: float = KEPT_S) -> AsyncIterator[QuotaStore]:
    made = QuotaStore(url, kept_s=kept_s)
    try:
        yield made
    finally:
        await made.close()


async def admitted(quotas: SharedQuotas, who: Principal, request_id: str, tokens: int = 0) -> str:
    """The limit that refused it; empty if none did."""
    try:
        await quotas.admit(who, request_id, tokens)
    except QuotaExceeded as error:
        return error.subject
    return ""


async def test_requests_a_minute_are_those_of_all_together(redis_url: str) -> None:
    who = caller("rpm", requests_per_minute=10)
    async with routers(redis_url, 3) as all_of_them:
        answers = await asyncio.gather(
            *(admitted(all_of_them[n % 3], who, f"r{n}") for n in range(30))
        )

    assert sorted(answers) == [""] * 10 + ["requests_per_minute"] * 20


async def test_a_refusal_tells_how_long_to_wait(redis_url: str) -> None:
    who = caller("wait", requests_per_minute=2)
    async with routers(redis_url) as (one, other):
        for name in ("a", "b"):
            await one.admit(who, name, 0)
        with pytest.raises(QuotaExceeded) as told:
            await other.admit(who, "c", 0)

    assert 25 < (told.value.retry_after_s or 0) <= 30


async def test_tokens_that_one_router_hears_of_count_at_the_other(redis_url: str) -> None:
    who = caller("tpm", tokens_per_minute=100)
    async with routers(redis_url) as (one, other):
        await one.admit(who, "a", 60)
        one.used("a", 60)
        before = await admitted(other, who, "b")
        await one.settle()
        after = await admitted(other, who, "c")

    assert (before, after) == ("", "tokens_per_minute")


async def test_requests_at_once_are_those_of_all_and_end_for_all(redis_url: str) -> None:
    who = caller("most", max_concurrency=1)
    async with routers(redis_url) as (one, other):
        async with one.held(who, "a", 0):
            during = await admitted(other, who, "b")
        await one.settle()
        after = await admitted(other, who, "b")

    assert (during, after) == ("max_concurrency", "")


async def test_an_attempt_at_another_router_is_charged_for_nothing(redis_url: str) -> None:
    who = caller("again", requests_per_minute=1, tokens_per_minute=100)
    async with routers(redis_url) as (one, other):
        await one.admit(who, "a", 10)
        again = await admitted(other, who, "a", 10)
        for router in (one, other):  # both hear the worker's word
            router.ended("a", 50, aborted=False)
            await router.settle()
        async with store(redis_url) as all_of_them:
            verdict = await all_of_them.claim(Claim("again", "b", 0, who.limits))

    assert again == ""
    assert verdict.tokens == pytest.approx(100 - 10 - 50, abs=2)


async def test_what_nobody_keeps_up_is_forgotten_and_what_is_kept_up_is_not(
    redis_url: str,
) -> None:
    limits = Limits(max_concurrency=1)
    async with store(redis_url, kept_s=0.05) as short, store(redis_url) as long:
        await short.claim(Claim("lost", "a", 0, limits))
        refused = await short.claim(Claim("lost", "b", 0, limits))
        async with asyncio.timeout(10):
            while (await short.claim(Claim("lost", "b", 0, limits))).refused:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await long.settle([Settlement("lost", 0, (), ("b",))])
        still = await long.claim(Claim("lost", "c", 0, limits))

    assert (refused.refused, still.refused) == ("max_concurrency", "max_concurrency")


async def test_without_redis_each_goes_by_its_own_count() -> None:
    who = caller("away", requests_per_minute=3)
    async with routers("redis://127.0.0.1:1") as (one, other):
        first = [await admitted(one, who, f"a{n}") for n in range(4)]
        second = [await admitted(other, who, f"b{n}") for n in range(4)]

    assert first == second == ["", "", "", "requests_per_minute"]
    assert one.decided_alone == 3


async def test_limits_are_shared_again_when_redis_is_back() -> None:
    who = caller("back", requests_per_minute=100, tokens_per_minute=100)
    now = 0.0
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        server = RedisServer(Path(folder))
        one = SharedQuotas(lambda: now, QuotaStore(server.url))
        await one.admit(who, "a", 0)
        one.used("a", 80)
        await one.settle()
        alone = one.decided_alone
        with server:
            await one.admit(who, "b", 0)  # within the second in which nobody asks
            now = 2.0
            await one.admit(who, "c", 0)
            await one.settle()
            async with store(server.url) as all_of_them:
                verdict = await all_of_them.claim(Claim("back", "d", 0, who.limits))
            await one.close()

    assert (alone, one.decided_alone) == (1, 2)
    assert verdict.tokens == pytest.approx(20, abs=5)
    assert verdict.requests == pytest.approx(98, abs=1)


async def test_a_redis_that_says_nothing_costs_a_bounded_wait(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the other side goes
        writer.close()

    server = await asyncio.start_unix_server(silent, path)
    who = caller("silent", requests_per_minute=3)
    async with routers(f"unix://{path}", 1) as (one,):
        async with asyncio.timeout(5):
            answers = [await admitted(one, who, f"a{n}") for n in range(4)]
    server.close()

    assert answers == ["", "", "", "requests_per_minute"]


async def test_a_caller_that_goes_away_while_redis_is_asked_holds_nothing(redis_url: str) -> None:
    who = caller("gone", max_concurrency=1)
    async with routers(redis_url, 1) as (one,):
        asking = asyncio.create_task(one.admit(who, "a", 0))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await one.settle()
        then = await admitted(one, who, "b")

    assert (len(one), then) == (1, "")


async def test_the_loop_tells_of_ends_and_keeps_up_what_goes_on(redis_url: str) -> None:
    who = caller("loop", max_concurrency=1)
    async with routers(redis_url) as (one, other):
        telling = asyncio.create_task(one.run())
        await one.admit(who, "a", 0)
        one.finish("a")
        async with asyncio.timeout(10):
            while await admitted(other, who, "b"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)

    assert len(other) == 1
