"""Streams end with their client, with their deadline, and in an orderly shutdown."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from penstock_testing.servers.gateway import running_gateway
from penstock_testing.servers.memory_batches import Stored, running_batches
from penstock_testing.servers.scripted_router import MODEL, Script, running_router

WAIT_S = 10.0
CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def _nothing_failed_unexpectedly(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    errors = [r for r in caplog.records if r.name.startswith("penstock") and r.levelname == "ERROR"]
    assert [record.getMessage() for record in errors] == []


def body(*, stream: bool = True, **more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": MODEL, "messages": messages, "stream": stream, **more}


async def reached(event: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_S):
        await event.wait()


async def test_a_client_that_leaves_a_stream_cancels_the_call() -> None:
    script = Script(hang_at=2)
    async with (
        running_router(script) as router,
        running_gateway(router) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as http,
    ):
        async with http.stream("POST", CHAT, json=body()) as response:
            assert "role" in await anext(response.aiter_text())
            assert not script.was_cancelled.is_set()
        await reached(script.was_cancelled)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token_cancels_the_call(stream: bool) -> None:
    script = Script(hang_at=0)
    async with (
        running_router(script) as router,
        running_gateway(router) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as http,
    ):
        asking = asyncio.create_task(http.post(CHAT, json=body(stream=stream)))
        await reached(script.is_running)
        asking.cancel()
        await reached(script.was_cancelled)


async def test_every_prompt_of_a_request_ends_with_its_client() -> None:
    script = Script(hang_at=0)
    async with (
        running_router(script) as router,
        running_gateway(router, grace_s=0.0) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as http,
    ):
        prompts = {"model": MODEL, "prompt": ["a", "b", "c"]}
        asking = asyncio.create_task(http.post("/v1/completions", json=prompts))
        await reached(script.is_running)
        asking.cancel()
        await reached(script.was_cancelled)


async def test_the_first_token_is_sent_before_the_last_is_made() -> None:
    script = Script(hang_at=1)
    async with (
        running_router(script) as router,
        running_gateway(router) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as http,
        http.stream("POST", CHAT, json=body()) as response,
    ):
        lines = response.aiter_lines()
        while "The" not in await anext(lines):
            pass
        script.resume.set()
        rest = [line async for line in lines if line]

    assert response.headers["content-type"].startswith("text/event-stream")
    assert rest[-1] == "data: [DONE]"


async def test_a_deadline_before_the_first_token_is_a_504() -> None:
    script = Script(hang_at=0)
    async with (
        running_router(script) as router,
        running_gateway(router, request_timeout_s=0.2) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as http,
    ):
        response = await http.post(CHAT, json=body())

        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
        assert response.headers["x-should-retry"] == "false"


async def test_a_deadline_in_a_stream_is_an_error_event_and_no_done() -> None:
    script = Script(hang_at=1)
    async with (
        running_router(script) as router,
        running_gateway(router, request_timeout_s=0.3) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as http,
    ):
        response = await http.post(CHAT, json=body())

        events = [line for line in response.text.splitlines() if line]
        assert response.status_code == 200
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


async def test_requests_beyond_the_limit_are_told_to_come_back() -> None:
    script = Script(hang_at=0)
    async with (
        running_router(script) as router,
        running_gateway(router, max_requests=1) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as http,
    ):
        first = asyncio.create_task(http.post(CHAT, json=body(stream=False)))
        await reached(script.is_running)

        refused = await http.post(CHAT, json=body())
        probe = await http.get("/healthz")
        script.resume.set()

        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert probe.status_code == 200
        assert (await first).status_code == 200


async def test_shutdown_finishes_streams_and_refuses_what_is_new() -> None:
    script = Script(hang_at=1)
    async with (
        running_router(script) as router,
        running_gateway(router, grace_s=WAIT_S) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as http,
        http.stream("POST", CHAT, json=body()) as response,
    ):
        await reached(script.is_running)
        assert (await http.get("/readyz")).status_code == 200
        gateway.stop.set()

        async with asyncio.timeout(WAIT_S):
            while (ready := await http.get("/readyz")).status_code == 200:
                pass
        refused = await http.post(CHAT, json=body())
        alive = await http.get("/healthz")
        script.resume.set()
        text = "".join([part async for part in response.aiter_text()])
        async with asyncio.timeout(WAIT_S):
            await gateway.serving

    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
    assert refused.status_code == 503
    assert alive.status_code == 200
    assert text.endswith("data: [DONE]\n\n")


async def test_shutdown_ends_streams_that_outlast_their_grace() -> None:
    script = Script(hang_at=1)
    async with (
        running_router(script) as router,
        running_gateway(router, grace_s=0.1) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as http,
        http.stream("POST", CHAT, json=body()) as response,
    ):
        await reached(script.is_running)
        gateway.stop.set()

        with pytest.raises(httpx.RemoteProtocolError):
            await response.aread()
        await reached(script.was_cancelled)


async def test_a_client_that_leaves_a_download_ends_it() -> None:
    stored = Stored()
    async with (
        running_batches(stored) as batch,
        running_gateway(batch, batch) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as http,
    ):
        form: dict[str, Any] = {"file": ("x", b"y" * 20_000_000), "purpose": (None, "batch")}
        file_id = (await http.post("/v1/files", files=form)).json()["id"]
        async with http.stream("GET", f"/v1/files/{file_id}/content") as response:
            await anext(response.aiter_raw())
            assert not stored.download_ended.is_set()

        await reached(stored.download_ended)


async def test_a_download_that_fails_midway_is_seen_as_cut() -> None:
    stored = Stored()
    async with (
        running_batches(stored) as batch,
        running_gateway(batch, batch) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as http,
    ):
        form: dict[str, Any] = {"file": ("x", b"y" * 300_000), "purpose": (None, "batch")}
        file_id = (await http.post("/v1/files", files=form)).json()["id"]
        stored.fail_download_at = 100_000

        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(f"/v1/files/{file_id}/content")
