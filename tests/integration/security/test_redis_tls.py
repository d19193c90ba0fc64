"""Redis behind a password and TLS: the registry, the batch service's board, Celery, and keys."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from penstock_batch.queue.app import build_app
from penstock_batch.settings import BatchSettings
from penstock_batch.stores.board import Board
from penstock_core.errors import Unavailable
from penstock_core.registry import RedisRegistry, WorkerEntry
from penstock_core.security.redis_keys import RedisKeys
from penstock_testing.processes.redis import find_redis
from penstock_testing.servers.certificates import Authority

PASSWORD = "of-a-test"
DEADLINE_S = 20.0


@asynccontextmanager
async def guarded_redis(directory: Path) -> AsyncIterator[str]:
    """A Redis with a password behind TLS, which a proxy ends: not every build of it can."""
    socket, ours = directory / "r.sock", Authority(directory).issue("redis")
    arguments = [str(find_redis()), "--port", "0", "--unixsocket", str(socket), "--save", "",
                 "--requirepass", PASSWORD, "--dir", str(directory)]  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ours.cert, ours.key)

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner = await asyncio.open_unix_connection(str(socket))
        await asyncio.gather(pipe(reader, inner), pipe(inner_reader, writer))

    process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.DEVNULL)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not socket.exists():  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.02)
        port = server.sockets[0].getsockname()[1]
        yield f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?ssl_ca_certs={ours.ca}"
    finally:
        server.close()
        process.terminate()
        await process.wait()


async def test_everything_reaches_a_redis_behind_a_password_and_tls(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with guarded_redis(tmp_path_factory.mktemp("r")) as url:
        async with RedisRegistry(url) as registry:
            await registry.announce(WorkerEntry("host:1", "w"))
            found = await registry.workers()
        async with Board(url, "test") as board:
            await board.touch("batch_1")
            version = (await board.progress("batch_1")).version
        settings = BatchSettings.model_validate({"store_url": "file:///none", "redis_url": url})
        sent = await asyncio.to_thread(celery_sends, settings)
        plain = RedisRegistry(url.replace("rediss://", "redis://").partition("?")[0])
        nameless = RedisRegistry(url.replace(f":{PASSWORD}@", ""))
        unverified = RedisKeys(url.partition("?")[0])
        for call in (plain.workers(), nameless.workers(), unverified.version()):
            with pytest.raises(Unavailable) as caught:
                await call
            assert PASSWORD not in str(caught.value)
        for client in (plain, nameless, unverified):
            await client.close()
    assert [entry.worker_id for entry in found] == ["w"]
    assert version == "1"
    assert sent == 1


def celery_sends(settings: BatchSettings) -> int:
    """Tasks in the queue after one was sent."""
    app = build_app(settings)
    with closing(app), app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        app.send_task("penstock.batch.plan", args=["batch_1"], connection=connection)
        to: Any = connection.channel()
        with to:
            return int(to._size("shards"))
