"""Keys change under running servers; what they limit is refused with the right error."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from penstock_cli.__main__ import build_app
from penstock_client import AsyncClient
from penstock_core.errors import (
    PenstockError,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    Unavailable,
)
from penstock_core.security.auth import digest
from penstock_core.security.key_entries import KeyEntry
from penstock_core.security.live_keys import LiveKeys, live_keys
from penstock_core.security.redis_keys import RedisKeys
from penstock_core.settings import SettingsError
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.guarded import Guarded, guarded_platform, write_keys

DEADLINE_S = 10.0
ONE: Mapping[str, dict[str, object]] = {"pk-acme": {"tenant": "acme"}}


async def until(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await until_it(holds)


async def until_it(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is true: what is waited for happens in a store, which tells nobody."""
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def admits(keys: LiveKeys, key: str) -> bool:
    try:
        keys.authenticate({"authorization": f"Bearer {key}"})
    except Unauthenticated:
        return False
    return True


async def test_a_key_file_that_changes_counts_at_once_and_a_broken_one_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, ONE)
    async with live_keys(str(path)) as keys:
        write_keys(path, {"pk-other": {"tenant": "other"}})
        await until(lambda: admits(keys, "pk-other"))
        revoked = admits(keys, "pk-acme")
        await asyncio.to_thread(path.write_text, '{"keys": [{"sha2')
        await until(lambda: "going on with the API keys" in caplog.text)
        after_nonsense = admits(keys, "pk-other")
        write_keys(path, {})
        await until(lambda: not admits(keys, "pk-other"))
        admits_strangers = keys.asks is False
    assert (revoked, after_nonsense, admits_strangers) == (False, True, False)


async def test_keys_in_redis_are_noticed_and_outlive_its_absence(redis_url: str) -> None:
    store = RedisKeys(redis_url)
    entry = KeyEntry(digest("pk-acme"), "acme", "key_1")
    await store.change(lambda _: [entry])
    async with live_keys("", redis_url) as keys:
        known = admits(keys, "pk-acme")
        await store.change(lambda _: [])
        await until(lambda: not admits(keys, "pk-acme"))
    await store.close()
    assert known


async def test_a_store_that_is_away_ends_a_start_but_no_running_server() -> None:
    with pytest.raises(SettingsError, match="API keys"):
        async with live_keys("", "redis://127.0.0.1:1"):
            pass

    class Away:
        version_is = "1"

        async def version(self) -> str:
            if not self.version_is:
                raise Unavailable("gone")
            return self.version_is

        async def entries(self) -> list[KeyEntry]:
            return [KeyEntry(digest("pk-acme"), "acme", "key_1")]

        async def change(self, change: object) -> None:
            raise AssertionError("not asked for")

        async def close(self) -> None:
            pass

    away = Away()
    keys = LiveKeys(away, poll_s=0.001)
    await keys.load()
    following = asyncio.create_task(keys.run())
    away.version_is = ""
    await asyncio.sleep(0.02)
    following.cancel()
    assert admits(keys, "pk-acme")


def test_the_command_makes_lists_rotates_and_revokes(tmp_path: Path) -> None:
    store, shell, app = str(tmp_path / "keys.json"), CliRunner(), build_app()

    def penstock(*arguments: str) -> str:
        done = shell.invoke(app, ["keys", *arguments, "--store", store])
        assert done.exit_code == 0, done.output
        return done.stdout

    limits = ("--rpm", "60", "--tpm", "1000", "--concurrency", "2", "--model", "m")
    made = json.loads(penstock("create", "acme", "--name", "web", *limits, "--json"))
    rotated = json.loads(penstock("rotate", made["id"], "--json"))
    listed = json.loads(penstock("list", "--json"))
    penstock("revoke", made["id"])
    left = json.loads(penstock("list", "--json"))
    text = Path(store).read_text()

    assert [e["id"] for e in listed] == [made["id"], rotated["id"]]
    assert listed[0]["limits"] == listed[1]["limits"]
    assert listed[0]["expires_unix_s"] > 0
    assert "expires_unix_s" not in listed[1]
    assert [e["id"] for e in left] == [rotated["id"]]
    assert made["key"] not in text
    assert rotated["key"] not in text
    assert Path(store).stat().st_mode & 0o077 == 0
    assert shell.invoke(app, ["keys", "revoke", "key_none", "--store", store]).exit_code == 1


@asynccontextmanager
async def limited(
    directory: Path, redis_url: str, engine: FakeEngine | None = None, **entry: object
) -> AsyncIterator[tuple[Guarded, AsyncClient]]:
    """A platform and a client with a key that has these limits."""
    keys: Mapping[str, dict[str, object]] = {
        "pk-acme": {"tenant": "acme", **entry},
        "pk-free": {"tenant": "free"},
    }
    async with (
        guarded_platform(directory, redis_url, keys=keys, engine=engine) as platform,
        AsyncClient(platform.router, api_key="pk-acme", mode="proxy") as client,
    ):
        yield platform, client


async def ask(client: AsyncClient, prompt: str = "hello") -> PenstockError | None:
    try:
        await client.generate(prompt, model="fake", max_tokens=2)
    except PenstockError as error:
        return error
    return None


async def test_requests_a_minute_are_refused_alike_in_grpc_and_http(
    tmp_path: Path, redis_url: str
) -> None:
    async with limited(tmp_path, redis_url, limits={"requests_per_minute": 2}) as (
        platform,
        client,
    ):
        first, second, third = [await ask(client) for _ in range(3)]
        async with (
            httpx.AsyncClient(base_url=platform.gateway) as http,
            AsyncClient(platform.router, api_key="pk-free") as free,
        ):
            body = {"model": "fake", "prompt": "x", "max_tokens": 2}
            mine = {"authorization": "Bearer pk-acme"}
            answer = await http.post("/v1/completions", headers=mine, json=body)
            others = await ask(free)
    assert first is second is others is None
    assert isinstance(third, QuotaExceeded)
    assert third.subject == "requests_per_minute"
    assert 20 < (third.retry_after_s or 0) <= 30
    assert answer.status_code == 429
    assert 20 < float(answer.headers["retry-after"]) <= 30


async def test_tokens_a_minute_count_prompt_and_answer(tmp_path: Path, redis_url: str) -> None:
    async with limited(tmp_path, redis_url, limits={"tokens_per_minute": 50}) as (_, client):
        first = await ask(client, "x" * 60)
        second = await ask(client)
    assert first is None
    assert isinstance(second, QuotaExceeded)
    assert second.subject == "tokens_per_minute"


@pytest.mark.parametrize("mode", ["proxy", "lookaside"])
async def test_requests_at_once_are_counted_whichever_way_tokens_take(
    tmp_path: Path, redis_url: str, mode: str
) -> None:
    engine = FakeEngine()
    async with limited(tmp_path, redis_url, engine, limits={"max_concurrency": 1}) as (
        platform,
        other,
    ):
        engine.hold()
        engine.allow(1)
        chosen = AsyncClient(platform.router, api_key="pk-acme", mode=mode)  # type: ignore[arg-type]
        async with chosen as client:
            stream = client.stream("hello", model="fake", max_tokens=4)
            async with aclosing(stream):
                await anext(stream)
                second = await ask(other)
                engine.release()
                async for _ in stream:
                    pass

            async def is_free() -> bool:
                return await ask(other) is None

            await until_it(is_free)
    assert isinstance(second, QuotaExceeded)
    assert second.subject == "max_concurrency"


async def test_a_key_for_some_models_opens_no_other_by_any_rpc(
    tmp_path: Path, redis_url: str
) -> None:
    async with limited(tmp_path, redis_url, models=["another"]) as (platform, client):
        errors = [await ask(client)]
        for call in (client.tokenize("x", model="fake"), client.embed("x", model="fake")):
            try:
                await call
            except PenstockError as error:
                errors.append(error)
        listed = await client.models()
        async with AsyncClient(platform.router, api_key="pk-acme") as lookaside:
            errors.append(await ask(lookaside))
    assert [type(error) for error in errors] == [PermissionDenied] * 4
    assert listed == []


async def test_a_revoked_key_is_refused_within_a_second_or_so_everywhere(
    tmp_path: Path, redis_url: str
) -> None:
    async with limited(tmp_path, redis_url) as (platform, client):
        before = await ask(client)
        write_keys(platform.keys_file, {"pk-free": {"tenant": "free"}})
        mine = {"authorization": "Bearer pk-acme"}
        began = asyncio.get_running_loop().time()
        async with httpx.AsyncClient(base_url=platform.gateway) as http:

            async def is_refused() -> bool:
                paths = ("/v1/models", "/v1/files")
                seen = {(await http.get(path, headers=mine)).status_code for path in paths}
                return seen == {401} and isinstance(await ask(client), Unauthenticated)

            await until_it(is_refused)
        took_s = asyncio.get_running_loop().time() - began
    assert before is None
    assert took_s < 5.0
