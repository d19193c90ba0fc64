"""Puts a router together and runs it: built here, passed in, nothing global."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from penstock.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from penstock.routing.v1 import routing_service_pb2, routing_service_pb2_grpc
from penstock_core import lifecycle
from penstock_core.cost.spending import SpendingLedger
from penstock_core.ids import new_id
from penstock_core.registry import Registry, open_registry
from penstock_core.rpc.interceptors import ServerInterceptor
from penstock_core.rpc.server import RpcServer
from penstock_core.security.leases import internal_metadata
from penstock_core.security.live_keys import LiveKeys, live_keys
from penstock_core.security.quota_store import QuotaStore
from penstock_core.security.shared_quotas import SharedQuotas
from penstock_core.settings import SettingsError
from penstock_router.budgets import Budgets
from penstock_router.catalog import Catalog
from penstock_router.costs import CostReports
from penstock_router.decisions.book import DecisionBook
from penstock_router.decisions.log import write_decisions
from penstock_router.embedding import Embedder
from penstock_router.fleet.changes import Changes
from penstock_router.fleet.fleet import Fleet, WayIn
from penstock_router.fleet.tracked import Picture, Zones
from penstock_router.metrics import RouterMetrics
from penstock_router.places import Places
from penstock_router.prompts import Preparer
from penstock_router.proxy.forward import Forwarder, Surroundings
from penstock_router.proxy.pace import Pace
from penstock_router.routing import Policies, Router
from penstock_router.routing_service import RouterRouting
from penstock_router.servicer import RouterInference
from penstock_router.settings import RouterSettings
from penstock_router.texts import TextLibrary

logger = logging.getLogger(__name__)

SERVICES = (
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    routing_service_pb2.DESCRIPTOR.services_by_name["RoutingService"].full_name,
)

_LOOK_ROUND_S = 5.0


@dataclass(frozen=True, slots=True)
class RunningRouter:
    """A router that serves. ``endpoint`` is where; when one of ``tasks`` ends, it has failed."""

    endpoint: str
    fleet: Fleet
    book: DecisionBook
    picture: Picture
    tasks: tuple[asyncio.Task[None], ...]


@asynccontextmanager
async def running_router(settings: RouterSettings) -> AsyncIterator[RunningRouter]:
    """Serve until the context ends; then refuse, let streams finish within the grace, let go.

    Raises:
        SettingsError: there is neither a registry nor a list of workers, or the registry's URL or
            the key file or a policy is malformed.
        OSError: the address cannot be bound, or the key file not be read.
    """
    if not settings.registry_url and not settings.endpoints():
        raise SettingsError("PENSTOCK_ROUTER_REGISTRY_URL or PENSTOCK_ROUTER_WORKERS must be set")
    catalog = await _catalog(settings)
    try:
        policies = settings.policies()
        registry = open_registry(settings.registry_url, settings.endpoints())
    except ValueError as error:
        raise SettingsError(str(error)) from error
    async with AsyncExitStack() as stack:
        stack.push_async_callback(registry.close)
        keys = await stack.enter_async_context(live_keys(settings.keys_file, settings.keys_url))
        reports = _reports(settings, keys, picture := _picture(settings))
        stack.push_async_callback(reports.close)
        stack.push_async_callback(picture.quotas.close)
        await reports.budgets.read()
        parts = _assembled(settings, _Given(registry, catalog, policies, picture, reports))
        work = [parts.fleet.run(), parts.router.room.run(), reports.budgets.run()]
        if settings.registry_url:
            work.append(picture.quotas.run())
        if settings.decision_log:
            work.append(write_decisions(picture.book, Path(settings.decision_log)))
        tasks = await stack.enter_async_context(_background(*work))
        server = _server(ServerInterceptor(keys), parts.inference, parts.routing, settings)
        endpoint = _endpoint(settings.listen, server.bind(settings.listen))
        await parts.fleet.look_round(_LOOK_ROUND_S)  # who connects meanwhile waits
        await server.start()
        await server.serve()
        try:
            yield RunningRouter(endpoint, parts.fleet, picture.book, picture, tuple(tasks))
        finally:
            parts.routing.close()
            await server.stop(settings.grace_s, settings.linger_s)


def _reports(settings: RouterSettings, keys: LiveKeys, picture: Picture) -> CostReports:
    if keys.budgets and not settings.registry_url:
        raise SettingsError(
            "keys have budgets, and what is spent is kept in Redis: set PENSTOCK_ROUTER_REGISTRY_URL"
        )
    ledger = SpendingLedger(settings.registry_url) if settings.registry_url else None
    return CostReports(ledger, Budgets(lambda: keys.budgets, ledger, picture.metrics))


@dataclass(frozen=True, slots=True)
class _Given:
    """What a router is put together from beside its settings."""

    registry: Registry
    catalog: Catalog
    policies: Policies
    picture: Picture
    reports: CostReports


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a router consists of."""

    fleet: Fleet
    router: Router
    routing: RouterRouting
    inference: RouterInference


def _assembled(settings: RouterSettings, given: _Given) -> _Parts:
    lease_secret = settings.lease_secret.encode()
    picture, reports = given.picture, given.reports
    texts = TextLibrary()
    way_in = WayIn(settings.tls(), internal_metadata(lease_secret), settings.relay)
    fleet = Fleet(given.registry, picture, texts, Changes(), way_in)
    picture.metrics.watch_fleet(fleet.states, lambda: len(picture.index), fleet.divergences)
    places = Places(given.catalog, fleet, picture.clock)
    salt_key = settings.cache_secret.encode() or secrets.token_bytes(32)
    preparer = Preparer(fleet, texts, salt_key, places)
    router = Router(picture, fleet.changes, lease_secret, given.policies)
    picture.metrics.watch_queue(router.waiting)
    picture.metrics.watch_calibration(fleet.calibration)
    routing = RouterRouting(preparer, router, fleet, picture.book, reports)
    forwarder = _forwarder(settings, preparer, router, fleet)
    embedder = Embedder(preparer, router, fleet, picture.metrics, picture.clock)
    inference = RouterInference(
        preparer, forwarder, embedder, places, texts, reports.budgets, picture.quotas
    )
    return _Parts(fleet, router, routing, inference)


def _picture(settings: RouterSettings) -> Picture:
    picture = Picture(DecisionBook(), RouterMetrics(), time.monotonic)
    picture.zones = Zones(settings.zone, settings.zone_penalty_s)
    if settings.registry_url:
        picture.quotas = SharedQuotas(picture.clock, QuotaStore(settings.registry_url))
    picture.metrics.watch_quotas(lambda: picture.quotas.decided_alone)
    return picture


def _forwarder(
    settings: RouterSettings, preparer: Preparer, router: Router, fleet: Fleet
) -> Forwarder:
    pace = Pace(settings.messages_per_s, settings.max_delay_ms, group=new_id("pace"))
    metrics, clock = router.picture.metrics, router.picture.clock
    return Forwarder(Surroundings(preparer, router, fleet, metrics, clock, pace, settings.stall_s))


async def _catalog(settings: RouterSettings) -> Catalog:
    """What names lead to; read once."""
    if not settings.catalog:
        return Catalog()
    return await asyncio.to_thread(Catalog.load, Path(settings.catalog))


def _server(
    interceptor: ServerInterceptor,
    inference: RouterInference,
    routing: RouterRouting,
    settings: RouterSettings,
) -> RpcServer:
    def add_inference(server: grpc.aio.Server) -> None:
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)

    def add_routing(server: grpc.aio.Server) -> None:
        routing_service_pb2_grpc.add_RoutingServiceServicer_to_server(routing, server)

    return RpcServer(
        interceptor,
        (add_inference, add_routing),
        SERVICES,
        shares_port=settings.shares_port,
        tls=settings.tls(),
    )


async def serve(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set, or until a task beside the server fails."""
    async with running_router(settings) as router:
        lifecycle.settle()
        logger.info("the router listens on %s", router.endpoint)
        stopped = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait(
                [stopped, *router.tasks], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            stopped.cancel()
        for task in done:
            task.result()


@asynccontextmanager
async def _background(
    *work: Coroutine[None, None, None],
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks beside the server; whoever runs the server watches them."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _endpoint(listen: str, port: int) -> str:
    return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"
