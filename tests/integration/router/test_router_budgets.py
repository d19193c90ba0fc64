"""Budgets over two routers, a real Redis and real calls: who has spent theirs is refused everywhere."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from penstock.inference.v1 import generate_pb2, inference_service_pb2
from penstock.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from penstock.routing.v1 import routing_service_pb2 as pb
from penstock.routing.v1.routing_service_pb2_grpc import RoutingServiceStub
from penstock_client import AsyncClient
from penstock_core.cost.pricing import Price
from penstock_core.errors import BudgetSpent
from penstock_core.rpc import server as rpc
from penstock_core.security.auth import TENANT_KEY, digest
from penstock_core.settings import SettingsError
from penstock_router.process import running_router
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.processes.redis import RedisServer
from penstock_testing.servers.cluster import DEADLINE_S, DEFAULT_SETTINGS, ask
from penstock_testing.servers.worker import DEFAULT_OPTIONS, running_worker

PRICED = replace(DEFAULT_OPTIONS, price=Price(3600e6, "USD"))
SECRET = "leases"
Metadata = tuple[tuple[str, str], ...]


def keys(path: Path, amount: float) -> str:
    entries = [
        {"sha256": digest("poor"), "tenant": "poor", "budget": {"amount": amount, "period": "day"}},
        {"sha256": digest("rich"), "tenant": "rich"},
        {"sha256": digest("batch"), "tenant": "batch", "service": True},
    ]
    path.write_text(json.dumps({"keys": entries}), encoding="utf-8")
    return str(path)


def by(key: str, tenant: str = "") -> Metadata:
    shown = (("authorization", f"Bearer {key}"),)
    return (*shown, (TENANT_KEY, tenant)) if tenant else shown


@dataclass(frozen=True, slots=True)
class Edge:
    """One router as its callers see it."""

    endpoint: str
    channel: grpc.aio.Channel

    async def generate(self, who: Metadata) -> generate_pb2.Completed:
        call = InferenceServiceStub(self.channel).Generate(
            ask("hello"), metadata=who, timeout=DEADLINE_S
        )
        return [event async for event in call][-1].completed

    async def route(self, who: Metadata, emitted: bytes = b"") -> pb.RouteResponse:
        request = pb.RouteRequest(request=ask("hello"))
        if emitted:
            request.request.resume.choices.add().emitted.ids = emitted
        stub = RoutingServiceStub(self.channel)
        return await stub.Route(request, metadata=who, timeout=DEADLINE_S)

    async def embed(self, who: Metadata) -> inference_service_pb2.EmbedResponse:
        request = inference_service_pb2.EmbedRequest(model="fake", texts=["hello"])
        return await InferenceServiceStub(self.channel).Embed(
            request, metadata=who, timeout=DEADLINE_S
        )

    async def costs(self, who: Metadata, tenant: str = "") -> pb.ListCostsResponse:
        return await RoutingServiceStub(self.channel).ListCosts(
            pb.ListCostsRequest(tenant=tenant), metadata=who, timeout=DEADLINE_S
        )

    async def refuses(self, who: Metadata) -> grpc.RpcError:
        """Ask until the tenant is refused."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    await self.generate(who)
                except grpc.RpcError as error:
                    return error


@pytest.fixture
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("r")) as server:
        yield server


@asynccontextmanager
async def edges(redis: RedisServer, keys_file: str) -> AsyncIterator[tuple[Edge, Edge]]:
    """Two routers before one worker that costs a dollar each microsecond."""
    options = replace(PRICED, registry_url=redis.url, lease_secret=SECRET.encode())
    settings = DEFAULT_SETTINGS.model_copy(
        update={"registry_url": redis.url, "keys_file": keys_file, "lease_secret": SECRET}
    )
    async with (
        running_worker(FakeEngine(), options=options),
        running_router(settings) as one,
        running_router(settings) as two,
        rpc.channel(one.endpoint) as first,
        rpc.channel(two.endpoint) as second,
    ):
        async with asyncio.timeout(DEADLINE_S):
            for router in (one, two):
                while not router.fleet.states().get("LIVE"):
                    await router.fleet.changes.wait(0.05)
        yield Edge(one.endpoint, first), Edge(two.endpoint, second)


def quota_of(error: grpc.RpcError) -> error_details_pb2.QuotaFailure.Violation:
    """The detail of a refusal."""
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(error)
    quota, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    for detail in status.details:
        for target in (quota, retry):
            if detail.Is(target.DESCRIPTOR):
                detail.Unpack(target)
    assert 0 < retry.retry_delay.seconds <= 24 * 3600
    return quota.violations[0]


async def test_a_spent_budget_is_refused_by_every_router_in_every_way(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with edges(redis, keys(tmp_path / "keys.json", amount=1.0)) as (first, second):
        assert (await first.generate(by("poor"))).cost.amount > 1.0
        violation = quota_of(await first.refuses(by("poor")))
        assert violation.subject == "tenant:poor/budget:day"
        assert "1.00 USD a day" in violation.description

        quota_of(await second.refuses(by("poor")))
        quota_of(await second.refuses(by("batch", "poor")))
        for refused in (second.route(by("poor")), second.embed(by("poor"))):
            with pytest.raises(grpc.RpcError) as caught:
                await refused
            quota_of(caught.value)
        async with AsyncClient(second.endpoint, api_key="poor", mode="lookaside") as client:
            with pytest.raises(BudgetSpent):
                await client.generate("hello")

        assert (await second.generate(by("rich"))).cost.amount > 0
        assert (await second.generate(by("batch", "rich"))).cost.amount > 0


async def test_costs_are_told_to_whom_they_concern(redis: RedisServer, tmp_path: Path) -> None:
    async with edges(redis, keys(tmp_path / "keys.json", amount=1e12)) as (first, second):
        told = [await edge.generate(by("poor")) for edge in (first, second, first)]
        rich = await second.generate(by("rich"))

        async with asyncio.timeout(DEADLINE_S):
            while sum(c.requests for c in (await first.costs(by("batch"))).costs) < 4:
                pass  # each look is a call, so the workers' books get their turn
        (own,) = (await second.costs(by("poor"))).costs
        everybodys = await second.costs(by("batch"))
        (other,) = (await second.costs(by("batch"), "rich")).costs
        with pytest.raises(grpc.RpcError) as caught:
            await second.costs(by("poor"), "rich")

    assert (own.tenant, own.model, own.requests, own.currency) == ("poor", "fake", 3, "USD")
    assert own.amount == pytest.approx(sum(one.cost.amount for one in told))
    assert own.decode_s == pytest.approx(sum(one.cost.decode_s for one in told), abs=1e-8)
    assert own.completion_tokens == sum(one.usage.completion_tokens for one in told)
    assert other.amount == pytest.approx(rich.cost.amount)
    assert [cost.tenant for cost in everybodys.costs] == ["poor", "rich"]
    assert [budget.tenant for budget in everybodys.budgets] == ["poor"]
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_requests_go_on_while_redis_is_away(redis: RedisServer, tmp_path: Path) -> None:
    async with edges(redis, keys(tmp_path / "keys.json", amount=1.0)) as (first, _):
        await first.refuses(by("poor"))
        redis.stop()

        assert (await first.generate(by("rich"))).cost.amount > 0
        quota_of(await first.refuses(by("poor")))  # what was known stays known
        with pytest.raises(grpc.RpcError) as caught:
            await first.costs(by("rich"))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_budgets_need_somewhere_to_keep_what_is_spent(tmp_path: Path) -> None:
    settings = DEFAULT_SETTINGS.model_copy(
        update={"workers": "127.0.0.1:1", "keys_file": keys(tmp_path / "keys.json", 1.0)}
    )
    with pytest.raises(SettingsError, match="REGISTRY_URL"):
        async with running_router(settings):
            pass
