"""Gathers all facts about a deployment, side by side where that is possible."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from penstock.routing.v1 import routing_service_pb2 as pb
from penstock_cli.doctor.facts import Facts, IndexCheck, Kind, LeaseCheck, OpenDoor, Process
from penstock_cli.doctor.fleet import (
    RouterPort,
    compare_index,
    followed,
    try_door,
    try_lease,
)
from penstock_cli.doctor.processes import (
    Call,
    ask_gateway,
    ask_grpc,
    ask_metrics,
    ask_redis,
    read_keys,
)
from penstock_cli.doctor.sites import Site
from penstock_client.client import credentials
from penstock_core.channels import channel
from penstock_core.errors import PenstockError
from penstock_core.leases import internal_metadata
from penstock_core.tracing import Metadata
from penstock_core.version import VERSION


@dataclass(slots=True)
class _Fleet:
    """What routers told: (router, worker) pairs, and who did not let us look."""

    pairs: list[tuple[RouterPort, pb.WorkerStatus]] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)

    @property
    def live(self) -> list[tuple[RouterPort, pb.WorkerStatus]]:
        return [(r, s) for r, s in self.pairs if s.sync_state == pb.SYNC_STATE_LIVE]


async def survey(site: Site) -> Facts:
    """Everything there is to know. Nothing that is missing or broken raises."""
    async with AsyncExitStack() as stack:
        ports = []
        for number, address in enumerate(site.routers, 1):
            to = await stack.enter_async_context(channel(address, site.tls))
            name = "router" if len(site.routers) == 1 else f"router {number} ({address})"
            shown, internal = credentials(site.api_key or None), _internal(site)
            ports.append(RouterPort(name, to, shown, site.timeout_s, site.tls, internal))
        redis = await ask_redis(site.redis_url) if site.redis_url else None
        processes = await _processes(site, ports)
        there = {p.name for p in processes if not p.error}
        fleet = await _fleet([port for port in ports if port.name in there])
        endpoints = {s.info.endpoint: s.info.worker_id for _, s in fleet.pairs}
        endpoints |= {e.endpoint: e.worker_id for e in redis.entries} if redis else {}
        workers = await asyncio.gather(
            *(
                ask_grpc(Kind.WORKER, f"worker {worker_id or endpoint}", endpoint, _call(site))
                for endpoint, worker_id in sorted(endpoints.items())
            )
        )
        leases, doors, indexes = await _pairs(fleet)
    return Facts(
        processes=[*processes, *workers],
        refusals=fleet.refusals,
        followed=[followed(router.name, status) for router, status in fleet.pairs],
        indexes=indexes,
        leases=leases,
        doors=doors,
        redis=redis,
        keys=read_keys(site.keys_file) if site.keys_file else None,
        own_version=VERSION,
    )


def _call(site: Site) -> Call:
    return Call(site.timeout_s, site.tls)


def _internal(site: Site) -> Metadata:
    return internal_metadata(site.lease_secret.encode())


async def _processes(site: Site, ports: Sequence[RouterPort]) -> list[Process]:
    how = _call(site)
    asked = [
        ask_grpc(Kind.ROUTER, port.name, address, how)
        for port, address in zip(ports, site.routers, strict=True)
    ]
    if site.batch:
        asked.append(ask_grpc(Kind.BATCH, "batch service", site.batch, how))
    if site.gateway:
        asked.append(ask_gateway(site.gateway, how))
    asked += [ask_metrics(name, address, how) for name, address in site.metrics]
    return list(await asyncio.gather(*asked))


async def _fleet(ports: Sequence[RouterPort]) -> _Fleet:
    fleet = _Fleet()
    for port in ports:
        try:
            fleet.pairs += [(port, status) for status in await port.workers()]
        except PenstockError as error:
            fleet.refusals.append((port.name, error.message))
    return fleet


async def _pairs(
    fleet: _Fleet,
) -> tuple[list[LeaseCheck], list[OpenDoor], list[IndexCheck]]:
    """Leases first: the index is compared when it has settled."""
    leases = []
    for router, status in fleet.live:
        mine = status.info.worker_id
        others = [s.info.worker_id for r, s in fleet.live if r is router]
        others = [worker_id for worker_id in others if worker_id != mine]
        leases.append(await try_lease(router, status, others))
    by_worker = {s.info.worker_id: (r, s) for r, s in fleet.live}
    doors = await asyncio.gather(*(try_door(r, s) for r, s in by_worker.values()))
    indexes = await asyncio.gather(*(compare_index(r, s) for r, s in fleet.live))
    return leases, list(doors), list(indexes)
