"""Clients that send a request byte by byte, or not at all, hold no connection."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
import pytest

from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import running_cluster
from penstock_testing.servers.gateway import RunningGateway, running_gateway

DEADLINE_S = 20.0
SHORT_S = 0.2
PATIENT = {"head_timeout_s": 60.0, "body_timeout_s": 60.0}
BODY = b'{"model": "fake", "prompt": "hello", "max_tokens": 2}'
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n"
)
WHOLE = HEAD % len(BODY) + BODY


@asynccontextmanager
async def gateway(
    settings: Mapping[str, float], engine: FakeEngine | None = None
) -> AsyncIterator[RunningGateway]:
    chosen: dict[str, object] = {**PATIENT, **settings}
    async with (
        running_cluster(engine or FakeEngine()) as cluster,
        running_gateway(cluster.router.endpoint, **chosen) as running,  # type: ignore[arg-type]
    ):
        yield running


@asynccontextmanager
async def connection(
    running: RunningGateway,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = httpx.URL(running.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield reader, writer
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def trickle(writer: asyncio.StreamWriter, raw: bytes) -> None:
    """A byte now and then, for ever: the last is kept back."""
    while True:
        for byte in raw[:-1]:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(SHORT_S / 8)
        await asyncio.Event().wait()


async def end_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes the connection, which resets it for who still writes."""
    told = b""
    try:
        while piece := await reader.read(4096):
            told += piece
    except ConnectionResetError:
        pass
    return told


async def answer(reader: asyncio.StreamReader) -> bytes:
    """One answer with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    await reader.readexactly(length)
    return head


async def head_timeout_passes(running: RunningGateway) -> None:
    """The server's own clock: a connection that says nothing is closed when the time is over."""
    async with connection(running) as (reader, _):
        await end_of(reader)


@pytest.mark.parametrize(
    "sent",
    [b"", b"P", HEAD[:40], b"\r\n"],
    ids=["nothing", "a letter", "half a head", "an empty line"],
)
async def test_a_head_that_does_not_come_is_waited_for_only_so_long(sent: bytes) -> None:
    async with (
        gateway({"head_timeout_s": SHORT_S}) as running,
        connection(running) as (reader, writer),
    ):
        writer.write(sent)
        told = await end_of(reader)

    assert told.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


@pytest.mark.parametrize("setting", ["head_timeout_s", "body_timeout_s"])
async def test_a_byte_now_and_then_buys_no_time(setting: str) -> None:
    async with gateway({setting: SHORT_S}) as running, connection(running) as (reader, writer):
        if setting == "body_timeout_s":
            writer.write(HEAD % 100_000)
        began = time.monotonic()
        trickling = asyncio.create_task(trickle(writer, b"GET /" + b"x" * 60_000))
        told = await end_of(reader)
        took_s = time.monotonic() - began
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)

    assert told.startswith(b"HTTP/1.1 408 ")
    assert took_s < DEADLINE_S / 2


async def test_a_body_at_the_pace_that_is_asked_may_take_longer_than_the_timeout() -> None:
    body = b'{"model": "fake", "prompt": "%s", "max_tokens": 2}' % (b"x" * 600)
    settings = {"head_timeout_s": SHORT_S, "body_timeout_s": 4 * SHORT_S, "min_body_rate": 1.0}
    async with gateway(settings) as running, connection(running) as (reader, writer):
        writer.write(HEAD % len(body))
        for start in range(0, len(body), 80):
            writer.write(body[start : start + 80])
            await writer.drain()
            await head_timeout_passes(running)
        told = await answer(reader)

    assert told.startswith(b"HTTP/1.1 200 ")


async def test_who_is_answered_before_the_body_came_must_send_it_all_the_same() -> None:
    async with (
        gateway({"body_timeout_s": SHORT_S}) as running,
        connection(running) as (reader, writer),
    ):
        writer.write((HEAD % 100).replace(b"/v1/completions", b"/nowhere"))
        told = await end_of(reader)

    assert told.startswith(b"HTTP/1.1 404 ")
    assert told.endswith(b"The request came too slowly.")


async def test_a_kept_connection_is_waited_for_again_with_each_request() -> None:
    async with gateway({"head_timeout_s": 4 * SHORT_S}) as running, connection(running) as pair:
        reader, writer = pair
        over = asyncio.create_task(head_timeout_passes(running))
        while not over.done():
            writer.write(WHOLE)
            await writer.drain()
            assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")
        writer.write(WHOLE)
        assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")
        writer.write(HEAD[:30])
        told = await end_of(reader)

    assert told.startswith(b"HTTP/1.1 408 ")


async def test_an_answer_may_take_longer_than_any_request() -> None:
    engine, settings = FakeEngine(), {"head_timeout_s": SHORT_S, "body_timeout_s": SHORT_S}
    async with gateway(settings, engine) as running, connection(running) as (reader, writer):
        engine.hold()
        writer.write(WHOLE)
        for _ in range(4):
            await head_timeout_passes(running)
        engine.release()
        told = await answer(reader)

    assert told.startswith(b"HTTP/1.1 200 ")
