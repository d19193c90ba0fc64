"""A whole deployment of real processes on loopback ports, each to be stopped, killed and started again.

Unlike ``penstock up`` nothing watches over them: what a test does to a process stays done. What they
say lies in files beside one another.
"""

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from penstock.routing.v1 import routing_service_pb2
from penstock_cli.supervisor.probes import Probe, grpc_serving, http_ok
from penstock_client import AsyncClient
from penstock_testing.processes.ports import free_port
from penstock_testing.processes.redis import RedisServer

_START_S = 240.0
_STOP_S = 120.0
_POLL_S = 0.05
_LIVE = routing_service_pb2.SYNC_STATE_LIVE
_NO_CHANGES: Mapping[str, Mapping[str, str]] = {}
_NOTHING: Mapping[str, str] = {}


@dataclass(slots=True)
class Service:
    """One process. ``address`` is where it serves; ``metrics`` where it is scraped, if anywhere."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    address: str
    metrics: str
    is_ready: Probe
    log: Path
    _process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id. Raises RuntimeError if it never ran."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    async def start(self) -> None:
        """Start it, or start it again; returns when it is ready. Raises AssertionError."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *self.arguments,
                env={**_inherited(), **self.environment}, stdout=log, stderr=log,
            )  # fmt: skip
        async with asyncio.timeout(_START_S):
            while not await self.is_ready():
                assert self._process.returncode is None, f"{self.name} ended: {self.said()[-3000:]}"
                await asyncio.sleep(_POLL_S)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        process = self._process
        if process is None or process.returncode is not None:
            return 0
        process.send_signal(number)
        async with asyncio.timeout(_STOP_S):
            return await process.wait()

    async def restart(self) -> int:
        """Let it drain and start it again; the exit status of its first life."""
        status = await self.stop()
        await self.start()
        return status

    def said(self) -> str:
        """Everything it has logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@dataclass(slots=True)
class Deployment:
    """All services by name, and their Redis. ``gateway`` is the base URL of its API."""

    redis: RedisServer
    services: dict[str, Service] = field(default_factory=dict)

    @property
    def gateway(self) -> str:
        """The base URL that an OpenAI SDK takes."""
        return f"http://{self.services['gateway'].address}/v1"

    @property
    def lease_secret(self) -> str:
        """What routers and workers share."""
        return self.routers[0].environment["PENSTOCK_ROUTER_LEASE_SECRET"]

    @property
    def routers(self) -> list[Service]:
        """The routers."""
        return [s for name, s in self.services.items() if name.startswith("router")]

    @property
    def workers(self) -> list[Service]:
        """The workers."""
        return [s for name, s in self.services.items() if name.startswith("worker")]

    async def live(self, api_key: str = "") -> None:
        """Wait until every router knows every worker as LIVE."""
        wanted = {worker.name for worker in self.workers}
        for router in self.routers:
            async with AsyncClient(router.address, api_key=api_key or None) as client:
                async with asyncio.timeout(_START_S):
                    async for seen in client.watch_workers():
                        if {w.info.worker_id for w in seen if w.sync_state == _LIVE} >= wanted:
                            break


@asynccontextmanager
async def deployment(
    directory: Path,
    *,
    routers: int = 2,
    workers: int = 2,
    changes: Mapping[str, Mapping[str, str]] = _NO_CHANGES,
    environment: Mapping[str, str] = _NOTHING,
) -> AsyncIterator[Deployment]:
    """Two routers, two workers, batch service with its Celery worker and gateway, over a Redis.

    Args:
        directory: for logs, files and Redis' socket: its path must be short.
        routers: how many.
        workers: how many.
        changes: more settings by process name, without their prefix.
        environment: what every process gets besides.
    """
    with RedisServer(directory, aof=True) as redis:
        made = Deployment(redis)
        for service in _services(directory, redis.url, routers, workers):
            prefix = f"{service.arguments[0].upper()}_"
            own = {prefix + key: value for key, value in changes.get(service.name, {}).items()}
            service.environment = {**service.environment, **environment, **own}
            made.services[service.name] = service
        try:
            async with asyncio.TaskGroup() as group:
                for service in made.services.values():
                    group.create_task(service.start())
            yield made
        finally:
            async with asyncio.TaskGroup() as group:
                for service in made.services.values():
                    group.create_task(service.stop(signal.SIGKILL))


def _services(directory: Path, redis: str, routers: int, workers: int) -> list[Service]:
    lease, cache = secrets.token_hex(16), secrets.token_hex(16)
    made = [
        _grpc(directory, f"worker-{n}", ("penstock_worker",), {
            "ID": f"worker-{n}", "REGISTRY_URL": redis, "LEASE_SECRET": lease, "THREADS": "1",
            "DTYPE": "float32", "KV_MEMORY_MIB": "32",
        })
        for n in range(1, workers + 1)
    ]  # fmt: skip
    shared = {"REGISTRY_URL": redis, "LEASE_SECRET": lease, "CACHE_SECRET": cache}
    made += [
        _grpc(directory, f"router-{n}", ("penstock_router",), shared) for n in range(1, routers + 1)
    ]
    # A target that stands for all of them, as a name in DNS would.
    router = "ipv4:" + ",".join(s.address for s in made if s.name.startswith("router"))
    store = directory / "batches"
    store.mkdir(exist_ok=True)
    batch = {"STORE_URL": store.as_uri(), "REDIS_URL": redis, "ROUTER": router}
    made.append(_grpc(directory, "batch", ("penstock_batch", "serve"), batch))
    made.append(_celery(directory, batch))
    made.append(_gateway(directory, {"ROUTER": router, "BATCH": made[-2].address}))
    return made


def _grpc(
    directory: Path, name: str, arguments: Sequence[str], settings: Mapping[str, str]
) -> Service:
    address, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    own = {"LISTEN": address, "METRICS_LISTEN": metrics, **settings}
    environment = _prefixed(arguments[0], own)
    log = directory / f"{name}.log"
    return Service(name, arguments, environment, address, metrics, grpc_serving(address), log)


def _celery(directory: Path, settings: Mapping[str, str]) -> Service:
    port = free_port()
    metrics = f"127.0.0.1:{port}"
    arguments = ("penstock_batch", "work")
    environment = _prefixed(arguments[0], {"METRICS_LISTEN": metrics, **settings})
    ready = http_ok("127.0.0.1", port, "/metrics")
    log = directory / "batch-worker.log"
    return Service("batch-worker", arguments, environment, "", metrics, ready, log)


def _gateway(directory: Path, settings: Mapping[str, str]) -> Service:
    port = free_port()
    address = f"127.0.0.1:{port}"
    environment = _prefixed("penstock_gateway", {"LISTEN": address, **settings})
    ready = http_ok("127.0.0.1", port, "/readyz")
    log = directory / "gateway.log"
    arguments = ("penstock_gateway",)
    return Service("gateway", arguments, environment, address, address, ready, log)


def _prefixed(module: str, settings: Mapping[str, str]) -> dict[str, str]:
    return {f"{module.upper()}_{key}": value for key, value in settings.items()}


def _inherited() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "OTEL_"))}
