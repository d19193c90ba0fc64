"""The whole platform on one machine, as one context: everything ready inside, all gone after."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from penstock.routing.v1 import routing_service_pb2
from penstock_cli.failures import CommandFailed
from penstock_cli.supervisor.environment import (
    Addresses,
    EngineChoice,
    Site,
    metered_names,
    platform_specs,
)
from penstock_cli.supervisor.folders import owned, socket_dir
from penstock_cli.supervisor.keys import Keys, no_keys, settle_keys
from penstock_cli.supervisor.ports import PortWish, settle_ports
from penstock_cli.supervisor.processes import Say, Supervisor
from penstock_cli.supervisor.redis import find_server, redis_spec
from penstock_client import AsyncClient
from penstock_core.cost.budgets import Budget
from penstock_core.cost.pricing import NO_PRICE, Price

_FLEET_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class PlatformOptions:
    """What to start. Port 0 takes a free one.

    Attributes:
        data_dir: holds Redis' file, batch files and logs; survives.
        workers: decode workers.
        model: ``demo``, a directory or a hub id.
        engine: how its workers compute.
        host: address that everything listens on.
        require_key: whether callers must show an API key.
        keys_file: whose keys admit callers; None with ``require_key`` makes one.
        price: of an hour of a worker.
        budget: what the callers with the key that is made may spend.
    """

    data_dir: Path
    workers: int = 2
    model: str = "demo"
    engine: EngineChoice = field(default_factory=EngineChoice)
    host: str = "127.0.0.1"
    gateway_port: int = 8000
    router_port: int = 50051
    batch_port: int = 50052
    require_key: bool = False
    keys_file: Path | None = None
    price: Price = NO_PRICE
    budget: Budget | None = None


@dataclass(frozen=True, slots=True)
class Platform:
    """A running platform."""

    addresses: Addresses
    supervisor: Supervisor
    data_dir: Path
    service_key: str


@asynccontextmanager
async def running_platform(options: PlatformOptions, say: Say) -> AsyncIterator[Platform]:
    """Start everything; ready once each process says so and the router knows every worker.

    Raises:
        CommandFailed: a port is taken, the data folder is in use, or a process did not start.
    """
    data_dir = options.data_dir.expanduser().resolve()
    with owned(data_dir), socket_dir(data_dir) as sockets:
        keys = _keys(options, data_dir)
        addresses = _addresses(options, sockets / "redis.sock", keys)
        site = Site(options.model, data_dir, addresses, keys, options.engine, options.price)
        async with Supervisor(data_dir / "logs", say) as supervisor:
            say("starting Redis")
            redis = redis_spec(find_server(), data_dir / "redis", sockets / "redis.sock")
            await supervisor.start([redis])
            say(f"starting router, {options.workers} workers, batch service and gateway")
            await supervisor.start(platform_specs(site))
            say("waiting until the router knows every worker")
            await _until_routable(addresses.router, keys.service, options.workers)
            yield Platform(addresses, supervisor, data_dir, keys.service)


def _keys(options: PlatformOptions, data_dir: Path) -> Keys:
    wanted = options.require_key or options.keys_file is not None
    if not wanted:
        return no_keys()
    return settle_keys(data_dir, options.keys_file, options.budget)


def _addresses(options: PlatformOptions, redis_socket: Path, keys: Keys) -> Addresses:
    names = metered_names(options.workers)
    wishes = [
        PortWish(options.gateway_port, "gateway", "--port"),
        PortWish(options.router_port, "router", "--router-port"),
        PortWish(options.batch_port, "batch service", "--batch-port"),
        *(PortWish(0, "worker", "--host") for _ in range(options.workers)),
        *(PortWish(0, "metrics", "--host") for _ in names),
    ]
    listen = [f"{options.host}:{port}" for port in settle_ports(options.host, wishes)]
    gateway, router, batch, *rest = listen
    return Addresses(
        gateway=gateway,
        router=router,
        batch=batch,
        workers=tuple(rest[: options.workers]),
        metrics=dict(zip(names, rest[options.workers :], strict=True)),
        redis_socket=str(redis_socket),
        api_key=keys.shown,
    )


async def _until_routable(router: str, api_key: str, workers: int) -> None:
    live = 0
    try:
        async with (
            asyncio.timeout(_FLEET_TIMEOUT_S),
            AsyncClient(router, api_key=api_key or None) as client,
            aclosing(client.watch_workers()) as views,
        ):
            async for view in views:
                live = sum(w.sync_state == routing_service_pb2.SYNC_STATE_LIVE for w in view)
                if live >= workers:
                    return
    except TimeoutError:
        pass
    raise CommandFailed(
        f"the router knows {live} of {workers} workers after {_FLEET_TIMEOUT_S:g} s"
    )
