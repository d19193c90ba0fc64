"""Several routers over the same workers: they share nothing but the workers' streams."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product

import grpc
import pytest

from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock.routing.v1 import routing_service_pb2, routing_service_pb2_grpc
from penstock_core.errors import LeaseInvalid
from penstock_core.rpc import server as rpc
from penstock_core.rpc.status import from_rpc_error
from penstock_router.process import RunningRouter, running_router
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import (
    DEADLINE_S,
    DEFAULT_SETTINGS,
    Answer,
    Cluster,
    ask,
    collect,
    running_cluster,
)

SECRET = "between routers and workers"
SHARED = DEFAULT_SETTINGS.model_copy(update={"cache_secret": "salt"})


@asynccontextmanager
async def routers(cluster: Cluster, count: int) -> AsyncIterator[list[RunningRouter]]:
    """The cluster's router and more of them, all knowing all workers."""
    endpoints = ",".join(worker.endpoint for worker in cluster.workers)
    settings = SHARED.model_copy(update={"workers": endpoints, "lease_secret": SECRET})
    async with AsyncExitStack() as stack, asyncio.timeout(DEADLINE_S):
        found = [cluster.router]
        for _ in range(count - 1):
            found.append(await stack.enter_async_context(running_router(settings)))
        for router in found:
            while router.fleet.states().get("LIVE", 0) < len(cluster.workers):
                await router.fleet.changes.wait(0.05)
        yield found


async def route(
    router: RunningRouter, request: generate_pb2.GenerateRequest, excluded: Sequence[str] = ()
) -> routing_service_pb2.RouteResponse:
    """Where one router sends a request."""
    async with rpc.channel(router.endpoint) as channel:
        stub = routing_service_pb2_grpc.RoutingServiceStub(channel)
        return await stub.Route(
            routing_service_pb2.RouteRequest(request=request, excluded_worker_ids=excluded),
            timeout=DEADLINE_S,
        )


async def stream(
    found: routing_service_pb2.RouteResponse, endpoint: str, request: generate_pb2.GenerateRequest
) -> Answer:
    """Stream from a worker with a router's lease."""
    leased = generate_pb2.GenerateRequest()
    leased.CopyFrom(request)
    leased.request_id = found.request_id
    leased.tokens.CopyFrom(found.prompt_tokens)
    leased.lease.CopyFrom(found.lease)
    async with rpc.channel(endpoint) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        return await collect(stub.Generate(leased, timeout=DEADLINE_S))


async def test_every_router_s_leases_are_honoured_by_every_worker() -> None:
    engines = [FakeEngine() for _ in range(3)]
    async with (
        running_cluster(*engines, lease_secret=SECRET, settings=SHARED) as cluster,
        routers(cluster, 3) as found,
    ):
        names = [worker.info.worker_id for worker in cluster.workers]
        for number, (router, name) in enumerate(product(found, names)):
            request = ask([number] * 70)
            others = [other for other in names if other != name]
            routed = await route(router, request, others)
            answer = await stream(routed, routed.endpoint, request)
            assert answer.started.worker_id == name
            assert answer.started.decision_id == routed.decision_id


async def test_a_lease_is_good_for_one_worker_only() -> None:
    async with (
        running_cluster(FakeEngine(), FakeEngine(), lease_secret=SECRET) as cluster,
        routers(cluster, 2) as found,
    ):
        request = ask(list(range(70)))
        routed = await route(found[1], request)
        other = next(w for w in cluster.workers if w.info.worker_id != routed.worker_id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream(routed, other.endpoint, request)
    assert isinstance(from_rpc_error(caught.value), LeaseInvalid)


async def test_routers_that_never_met_send_a_new_prefix_to_the_same_worker() -> None:
    engines = [FakeEngine() for _ in range(4)]
    async with (
        running_cluster(*engines, lease_secret=SECRET, settings=SHARED) as cluster,
        routers(cluster, 3) as found,
    ):
        for number in range(6):
            prompt = [number + 1] * 100
            routed = [await route(router, ask(prompt)) for router in found]
            assert len({each.worker_id for each in routed}) == 1
            # Nobody comes, and what is reserved would weigh less on each router with the time it took.
            for router, each in zip(found, routed, strict=True):
                for worker in router.fleet.workers():
                    worker.load.release(each.request_id)


async def test_what_one_router_filled_a_cache_with_another_finds() -> None:
    prompt = list(range(100))
    async with (
        running_cluster(
            FakeEngine(), FakeEngine(), lease_secret=SECRET, settings=SHARED
        ) as cluster,
        routers(cluster, 2) as found,
    ):
        answer = await cluster.generate(ask(prompt))
        async with asyncio.timeout(DEADLINE_S):
            while (seen := await route(found[1], ask(prompt))).predicted_cached_tokens < 96:
                await found[1].fleet.changes.wait(0.05)
    assert seen.worker_id == answer.started.worker_id


async def test_a_stream_goes_on_through_another_router_when_its_own_is_gone() -> None:
    prompt, tokens = list(range(100)), 40
    async with (
        running_cluster(
            FakeEngine(), FakeEngine(), lease_secret=SECRET, settings=SHARED
        ) as cluster,
        routers(cluster, 2) as found,
    ):
        whole = await cluster.generate(ask(prompt, max_tokens=tokens))
        request = ask(prompt, max_tokens=tokens)
        request.resume.attempt = 1
        state = request.resume.choices.add(emitted_chars=15)
        state.emitted.ids = b"".join(t.to_bytes(4, "little") for t in whole.tokens[:15])
        async with rpc.channel(found[1].endpoint) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            rest = [e async for e in stub.Generate(request, timeout=DEADLINE_S)]
    assert "".join(e.delta.text for e in rest) == whole.text[15:]
