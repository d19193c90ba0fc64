"""Tenants share no cache, by the router's index and by the clock; leases open one request only."""

import asyncio
from pathlib import Path

import grpc

from penstock.common.v1 import lease_pb2
from penstock.inference.v1 import generate_pb2
from penstock.routing.v1 import routing_service_pb2 as routing_pb
from penstock.routing.v1 import routing_service_pb2_grpc
from penstock_client import AsyncClient
from penstock_core.errors import LeaseInvalid, PenstockError
from penstock_core.rpc.channels import channel
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security.leases import sign
from penstock_testing.callers.calls import calls_to
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import ask
from penstock_testing.servers.guarded import LEASE_SECRET, Guarded, guarded_platform

PROMPT = "the quick brown fox jumps over the lazy dog " * 20
ACME = (("authorization", "Bearer pk-acme"),)


async def test_anothers_prompt_is_no_hit_by_index_nor_by_the_clock(
    tmp_path: Path, redis_url: str
) -> None:
    """A step takes 1 ms a token here, so that a hit would show."""
    engine = FakeEngine(pace=lambda tokens: asyncio.sleep(tokens * 0.001))
    async with guarded_platform(tmp_path, redis_url, engine=engine) as platform:
        acme = AsyncClient(platform.router, api_key="pk-acme", mode="proxy")
        rival = AsyncClient(platform.router, api_key="pk-rival", mode="proxy")
        async with acme, rival:
            cold = await acme.generate(PROMPT, model="fake", max_tokens=2)
            warm = await acme.generate(PROMPT, model="fake", max_tokens=2)
            other = await rival.generate(PROMPT, model="fake", max_tokens=2)
            predicted = (await rival.explain(request_id=other.started.request_id)).decision
    assert warm.usage.cached_tokens > 0
    assert other.usage.cached_tokens == cold.usage.cached_tokens == 0
    assert all(c.matched_tokens == 0 for c in predicted.candidates)
    assert warm.timing.ttft_s < cold.timing.ttft_s / 2
    assert other.timing.ttft_s > cold.timing.ttft_s / 2


async def routed(platform: Guarded, request_id: str) -> routing_pb.RouteResponse:
    async with channel(platform.router) as to:
        stub = routing_service_pb2_grpc.RoutingServiceStub(to)
        wanted = routing_pb.RouteRequest(request=ask("hello", request_id))
        return await stub.Route(wanted, metadata=ACME)


async def refused(platform: Guarded, request: generate_pb2.GenerateRequest) -> PenstockError | None:
    async with calls_to(platform.worker.endpoint) as calls:
        try:
            async for _ in calls.inference.Generate(request):
                pass
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
    return None


def with_lease(lease: lease_pb2.Lease, request_id: str) -> generate_pb2.GenerateRequest:
    request = ask("hello", request_id)
    request.lease.CopyFrom(lease)
    return request


async def test_a_lease_runs_its_own_request_once_and_no_other(
    tmp_path: Path, redis_url: str
) -> None:
    async with guarded_platform(tmp_path, redis_url) as platform:
        lease = (await routed(platform, "r1")).lease
        other = await refused(platform, with_lease(lease, "r2"))
        first = await refused(platform, with_lease(lease, "r1"))
        again = await refused(platform, with_lease(lease, "r1"))
    assert isinstance(other, LeaseInvalid)
    assert first is None
    assert isinstance(again, LeaseInvalid)


async def test_a_lease_moved_to_another_tenant_is_forged(tmp_path: Path, redis_url: str) -> None:
    async with guarded_platform(tmp_path, redis_url) as platform:
        lease = (await routed(platform, "r1")).lease
        claims = lease_pb2.LeaseClaims.FromString(lease.claims)
        tenant = claims.tenant
        claims.tenant = "rival"
        moved = lease_pb2.Lease(claims=claims.SerializeToString(), signature=lease.signature)
        guessed = sign(claims, b"not the secret")
        errors = [await refused(platform, with_lease(x, "r1")) for x in (moved, guessed)]
        right = await refused(platform, with_lease(sign(claims, LEASE_SECRET.encode()), "r1"))
    assert tenant == "acme"
    assert all(isinstance(error, LeaseInvalid) for error in errors)
    assert right is None
