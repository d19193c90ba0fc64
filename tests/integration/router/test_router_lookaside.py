"""Lookaside: the router says where, the client streams from the worker itself."""

import grpc
import pytest

from penstock.common.v1 import lease_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock.routing.v1 import routing_service_pb2 as pb
from penstock_core.blocks import unpack_tokens
from penstock_core.errors import LeaseInvalid, NoWorker
from penstock_core.rpc import server as rpc
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security.leases import sign
from penstock_router.settings import RouterSettings
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import Answer, Cluster, ask, collect, running_cluster

SECRET = "a secret"
TEXT = "the same long beginning, " * 20


async def stream_from_worker(
    route: pb.RouteResponse, request: generate_pb2.GenerateRequest
) -> Answer:
    """What a client does with a route."""
    request.tokens.CopyFrom(route.prompt_tokens)
    request.request_id = route.request_id
    request.lease.CopyFrom(route.lease)
    async with rpc.channel(route.endpoint) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        return await collect(stub.Generate(request))


async def route(cluster: Cluster, request: generate_pb2.GenerateRequest) -> pb.RouteResponse:
    return await cluster.routing.Route(pb.RouteRequest(request=request))


@pytest.mark.parametrize("secret", [SECRET, ""])
async def test_a_route_opens_the_worker_that_it_names(secret: str) -> None:
    async with running_cluster(FakeEngine(), FakeEngine(), lease_secret=secret) as cluster:
        first = await route(cluster, ask(TEXT))
        answer = await stream_from_worker(first, ask(TEXT))
        await cluster.until(lambda: len(cluster.router.picture.index) >= 15)
        await cluster.until(
            lambda: all(w.load.running() == 0 for w in cluster.router.fleet.workers())
        )
        again = await route(cluster, ask(TEXT))
        second = await stream_from_worker(again, ask(TEXT))
        explained = await cluster.routing.ExplainDecision(
            pb.ExplainDecisionRequest(decision_id=again.decision_id)
        )
    assert bytes(unpack_tokens(first.prompt_tokens.ids)).decode() == TEXT
    assert answer.started.worker_id == first.worker_id == again.worker_id
    assert answer.started.decision_id == first.decision_id
    assert first.predicted_cached_tokens == answer.started.cached_tokens == 0
    assert again.predicted_cached_tokens == second.started.cached_tokens == 480
    assert explained.decision.request_id == again.request_id


async def test_a_worker_that_checks_leases_refuses_a_forged_one() -> None:
    async with running_cluster(FakeEngine(), lease_secret=SECRET) as cluster:
        chosen = await route(cluster, ask(TEXT))
        claims = lease_pb2.LeaseClaims.FromString(chosen.lease.claims)
        chosen.lease.CopyFrom(sign(claims, b"another secret"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream_from_worker(chosen, ask(TEXT))
    assert isinstance(from_rpc_error(caught.value), LeaseInvalid)


async def test_the_proxy_carries_a_lease_too() -> None:
    async with running_cluster(FakeEngine(), lease_secret=SECRET) as cluster:
        assert (await cluster.generate(ask(TEXT))).tokens


async def test_a_worker_that_just_failed_the_caller_is_not_chosen_again() -> None:
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        first = await route(cluster, ask(TEXT))
        request = pb.RouteRequest(request=ask(TEXT), excluded_worker_ids=[first.worker_id])
        second = await cluster.routing.Route(request)
        assert second.worker_id != first.worker_id
        request.excluded_worker_ids.append(second.worker_id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.routing.Route(request)
    assert isinstance(from_rpc_error(caught.value), NoWorker)


async def test_a_resumed_request_is_looked_up_with_what_it_had_emitted() -> None:
    async with running_cluster(FakeEngine()) as cluster:
        answer = await cluster.generate(ask(TEXT, max_tokens=100))
        held = (500 + 100 - 1) // 32 * 32
        await cluster.until(lambda: len(cluster.router.picture.index) >= held // 32)
        resumed = ask(TEXT, max_tokens=101)
        state = resumed.resume.choices.add()
        state.emitted.ids = b"".join(t.to_bytes(4, "little") for t in answer.tokens)
        resumed.resume.attempt = 1
        found = await route(cluster, resumed)
    assert found.predicted_cached_tokens == held


async def test_tenants_share_no_cache() -> None:
    settings = RouterSettings(listen="127.0.0.1:0", grace_s=0.5)
    async with running_cluster(FakeEngine(), settings=settings) as cluster:
        await cluster.generate(ask(TEXT))
        wanted = pb.RouteRequest(request=ask(TEXT))
        own = await cluster.routing.Route(wanted)
        other = await cluster.routing.Route(wanted, metadata=(("x-penstock-tenant", "other"),))
    assert own.predicted_cached_tokens == 480
    assert other.predicted_cached_tokens == 0
    claims = lease_pb2.LeaseClaims.FromString(other.lease.claims)
    assert claims.tenant == "other"
