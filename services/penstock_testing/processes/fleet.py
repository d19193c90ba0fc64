"""Real router and worker processes on sockets in a directory, to be killed and started again.

Each keeps its address over its lives. What they say lies beside their sockets.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from penstock.routing.v1 import routing_service_pb2, routing_service_pb2_grpc
from penstock_core.rpc.channels import channel

_START_S = 120.0
_STOP_S = 30.0
_LIVE = routing_service_pb2.SYNC_STATE_LIVE
_NO_SETTINGS: Mapping[str, str] = {}


@dataclass(slots=True)
class ManagedProcess:
    """A process of Penstock's by its module and environment."""

    name: str
    module: str
    endpoint: str
    log: Path
    environment: Mapping[str, str]
    _process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id. Raises RuntimeError if it never ran."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    async def start(self) -> None:
        """Start it, or start it again; returns when it listens."""
        self._forget_socket()
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self.module,
                env={**_inherited(), **self.environment}, stdout=log, stderr=log,
            )  # fmt: skip
        async with channel(self.endpoint) as probe, asyncio.timeout(_START_S):
            ready = asyncio.ensure_future(probe.channel_ready())
            ended = asyncio.ensure_future(self._process.wait())
            try:
                await asyncio.wait([ready, ended], return_when=asyncio.FIRST_COMPLETED)
            finally:
                ready.cancel()
                ended.cancel()
        if self._process.returncode is not None:
            raise RuntimeError(f"{self.name} ended: {self.log.read_text(errors='replace')[-2000:]}")

    def _forget_socket(self) -> None:
        Path(self.endpoint.removeprefix("unix:")).unlink(missing_ok=True)

    async def signal(self, number: signal.Signals) -> None:
        """Send a signal; after one that ends it, wait for the end."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()

    async def kill(self) -> None:
        """End it at once, as a crash or the kernel would."""
        await self.signal(signal.SIGKILL)


@dataclass(slots=True)
class ProcessFleet:
    """Routers and workers. ``targets`` are the routers' addresses."""

    routers: list[ManagedProcess] = field(default_factory=list)
    workers: list[ManagedProcess] = field(default_factory=list)

    @property
    def targets(self) -> list[str]:
        """Addresses of the routers."""
        return [router.endpoint for router in self.routers]

    def worker(self, worker_id: str) -> ManagedProcess:
        """A worker by its id."""
        return next(worker for worker in self.workers if worker.name == worker_id)

    async def live(self, count: int | None = None) -> None:
        """Wait until every router knows this many workers (all) as LIVE."""
        wanted = len(self.workers) if count is None else count
        for target in self.targets:
            async with channel(target) as connected, asyncio.timeout(_START_S):
                stub = routing_service_pb2_grpc.RoutingServiceStub(connected)
                async for seen in stub.WatchFleet(routing_service_pb2.WatchFleetRequest()):
                    if sum(w.sync_state == _LIVE for w in seen.workers) >= wanted:
                        break


@asynccontextmanager
async def process_fleet(
    directory: Path,
    *,
    workers: int = 3,
    routers: int = 1,
    worker_settings: Mapping[str, str] = _NO_SETTINGS,
    router_settings: Mapping[str, str] = _NO_SETTINGS,
) -> AsyncIterator[ProcessFleet]:
    """Workers ``worker-1``... with the demo model before routers that share a lease secret.

    Args:
        directory: for sockets and logs; its path must be short, as sockets' paths are.
        workers: how many.
        routers: how many.
        worker_settings: more settings of the workers, without their prefix.
        router_settings: the same of the routers.
    """
    fleet = ProcessFleet()
    settings = {"LEASE_SECRET": "test", "THREADS": "1", "DTYPE": "float32", **worker_settings}
    for number in range(1, workers + 1):
        own = {"ID": f"worker-{number}", **settings}
        fleet.workers.append(_process(directory, f"worker-{number}", "worker", own))
    addresses = ",".join(worker.endpoint for worker in fleet.workers)
    shared = {"LEASE_SECRET": "test", "CACHE_SECRET": "salt", "WORKERS": addresses}
    for number in range(1, routers + 1):
        own = {**shared, **router_settings}
        fleet.routers.append(_process(directory, f"router-{number}", "router", own))
    everybody = [*fleet.workers, *fleet.routers]
    try:
        async with asyncio.TaskGroup() as group:
            for process in everybody:
                group.create_task(process.start())
        await fleet.live()
        yield fleet
    finally:
        for process in everybody:
            await process.kill()


def _process(directory: Path, name: str, kind: str, settings: Mapping[str, str]) -> ManagedProcess:
    endpoint = f"unix:{directory / name}.sock"
    prefix = f"PENSTOCK_{kind.upper()}_"
    environment = {f"{prefix}{key}": value for key, value in settings.items()}
    environment[f"{prefix}LISTEN"] = endpoint
    return ManagedProcess(
        name, f"penstock_{kind}", endpoint, directory / f"{name}.log", environment
    )


def _inherited() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "OTEL_"))}
