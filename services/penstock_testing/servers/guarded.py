"""The whole platform in this process with keys, lease secret and, if wanted, TLS on every hop."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from penstock_batch.serve import serve_batches
from penstock_batch.settings import BatchSettings
from penstock_core.security.auth import digest
from penstock_core.security.tls import PLAIN, Tls
from penstock_engine.api import Engine
from penstock_router.process import running_router
from penstock_router.settings import RouterSettings
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.processes.ports import free_port
from penstock_testing.servers.gateway import running_gateway
from penstock_testing.servers.worker import DEFAULT_OPTIONS, RunningWorker, running_worker

LEASE_SECRET = "the-lease-secret-of-tests"
KEYS: Mapping[str, dict[str, object]] = {
    "pk-acme": {"tenant": "acme"},
    "pk-rival": {"tenant": "rival"},
    "pk-platform": {"tenant": "platform", "service": True},
}
_READY_S = 20.0


@dataclass(frozen=True, slots=True)
class Guarded:
    """Addresses of the processes, and the file of keys."""

    worker: RunningWorker
    router: str
    batch: str
    gateway: str
    keys_file: Path


def write_keys(path: Path, keys: Mapping[str, dict[str, object]]) -> None:
    """A key file for keys in plain text, with the other fields of their entries."""
    entries = [{"sha256": digest(key), **entry} for key, entry in keys.items()]
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"keys": entries}), encoding="utf-8")
    draft.replace(path)


@asynccontextmanager
async def guarded_platform(
    directory: Path,
    redis_url: str,
    *,
    keys: Mapping[str, dict[str, object]] = KEYS,
    tls: Tls = PLAIN,
    engine: Engine | None = None,
) -> AsyncIterator[Guarded]:
    """Worker, router, batch service and gateway; ``tls`` serves all of them, HTTPS included."""
    keys_file = directory / "keys.json"
    write_keys(keys_file, keys)
    common = {
        "tls_cert": tls.cert,
        "tls_key": tls.key,
        "tls_ca": tls.ca,
        "tls_client_auth": tls.client_auth,
        "keys_file": str(keys_file),
    }
    async with AsyncExitStack() as stack:
        secret = LEASE_SECRET.encode()
        options = replace(DEFAULT_OPTIONS, tls=tls, lease_secret=secret)
        worker = await stack.enter_async_context(
            running_worker(engine or FakeEngine(), options=options)
        )
        router_settings = RouterSettings.model_validate(
            {
                **common,
                "listen": "127.0.0.1:0",
                "workers": worker.endpoint,
                "lease_secret": LEASE_SECRET,
                "cache_secret": "salt",
                "grace_s": 0.5,
            }
        )
        router = await stack.enter_async_context(running_router(router_settings))
        async with asyncio.timeout(_READY_S):
            while not router.fleet.states().get("LIVE", 0):
                await router.fleet.changes.wait(0.05)
        batch = await stack.enter_async_context(
            _running_batch(directory, redis_url, router.endpoint, common)
        )
        gateway = await stack.enter_async_context(
            running_gateway(
                router.endpoint, batch, **common, https_cert=tls.cert, https_key=tls.key
            )
        )
        url = gateway.url.replace("http://", "https://") if tls.serves else gateway.url
        yield Guarded(worker, router.endpoint, batch, url, keys_file)


@asynccontextmanager
async def _running_batch(
    directory: Path, redis_url: str, router: str, common: Mapping[str, object]
) -> AsyncIterator[str]:
    endpoint = f"127.0.0.1:{free_port()}"
    settings = BatchSettings.model_validate(
        {
            **common,
            "listen": endpoint,
            "store_url": f"file://{directory}/store",
            "redis_url": redis_url,
            "redis_prefix": f"guarded{directory.name}",
            "router": router,
            "grace_s": 0.5,
        }
    )
    stop = asyncio.Event()
    serving = asyncio.create_task(serve_batches(settings, stop))
    try:
        async with asyncio.timeout(_READY_S):
            while not await _listens(endpoint):
                if serving.done():
                    serving.result()
        yield endpoint
    finally:
        stop.set()
        await serving


async def _listens(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        await asyncio.sleep(0.02)
        return False
    writer.close()
    return True
