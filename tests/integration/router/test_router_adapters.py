"""Adapters through router and worker: how they are named, and whose blocks they reuse."""

from dataclasses import replace
from functools import partial

import grpc
import pytest

from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock.inference.v1 import inference_service_pb2 as pb
from penstock.routing.v1 import routing_service_pb2
from penstock_core.errors import InvalidRequest, LeaseInvalid, NotFound, PenstockError
from penstock_core.rpc import server as rpc
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security.leases import internal_metadata
from penstock_engine.api import EngineState
from penstock_router.frames import LoadReport
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.cluster import Cluster, ask, collect, running_cluster

TEXT = "the same long beginning, " * 20


def engine(*adapters: str) -> FakeEngine:
    return FakeEngine(FakeConfig(adapters=adapters))


def wanted(model: str, adapter: str = "", request_id: str = "") -> generate_pb2.GenerateRequest:
    request = ask(TEXT, request_id, model=model)
    request.adapter = adapter
    return request


async def refusal(cluster: Cluster, request: generate_pb2.GenerateRequest) -> PenstockError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.generate(request)
    return from_rpc_error(caught.value)


async def test_an_adapter_has_three_names() -> None:
    async with running_cluster(engine("poet"), lease_secret="secret") as cluster:
        for names in (("fake", "poet"), ("fake:poet", ""), ("poet", ""), ("fake", "")):
            await cluster.generate(wanted(*names))
        asked = [request.adapter for request in cluster.engine("worker-1").requests]
        unknown = await refusal(cluster, wanted("fake:painter"))
        double = await refusal(cluster, wanted("poet", "painter"))

    assert asked == ["poet", "poet", "poet", ""]
    assert isinstance(unknown, NotFound)
    assert isinstance(double, InvalidRequest)


async def test_adapters_of_one_model_share_no_blocks() -> None:
    async with running_cluster(engine("poet", "sql"), engine("poet", "sql")) as cluster:
        hits = {}
        for number, name in enumerate(["fake", "poet", "sql", "fake", "poet", "fake:sql"]):
            request = wanted(name, request_id=f"req-{number}")
            answer = await cluster.generate(request)
            outcome = (await cluster.explain(request.request_id)).outcome
            assert outcome.predicted_cached_tokens == answer.started.cached_tokens
            hits[number] = answer.started.cached_tokens

    assert [hits[n] for n in range(3)] == [0, 0, 0]
    assert [hits[n] for n in range(3, 6)] == [480] * 3


class Loading(FakeEngine):
    """Says that it has those adapters in memory which it was asked for, and that loading takes long."""

    def state(self) -> EngineState:
        used = {request.adapter for request in self.requests if request.adapter}
        return replace(super().state(), adapters=tuple(sorted(used)), adapter_load_s=3.0)


def reports(cluster: Cluster) -> list[LoadReport]:
    return [worker.load.report for worker in cluster.router.fleet.workers()]


def is_loaded(cluster: Cluster, name: str) -> bool:
    return any(name in report.loaded_adapters for report in reports(cluster))


async def test_requests_for_an_adapter_go_where_it_is_in_memory_already() -> None:
    engines = [Loading(FakeConfig(adapters=("poet", "sql"))) for _ in range(2)]
    async with running_cluster(*engines) as cluster:
        await cluster.until(lambda: all(r.adapter_load_s for r in reports(cluster)))
        chosen: dict[str, set[str]] = {"poet": set(), "sql": set()}
        for number in range(12):
            name = ("poet", "sql")[number % 2]
            request = ask(f"{number} has nothing in common", f"req-{number}", model=name)
            chosen[name].add((await cluster.generate(request)).started.worker_id)
            await cluster.until(partial(is_loaded, cluster, name))
        decision = (await cluster.explain("req-11")).decision
        await cluster.generate(ask("no adapter at all", "req-12", model="fake"))
        plain = (await cluster.explain("req-12")).decision

    assert [len(workers) for workers in chosen.values()] == [1, 1]
    here, there = decision.candidates
    assert here.adapter_load_s == 0.0
    assert there.adapter_load_s == pytest.approx(3.0)
    assert [c.adapter_load_s for c in plain.candidates] == [0.0, 0.0]


async def test_only_workers_that_have_the_adapter_are_asked() -> None:
    async with running_cluster(engine(), engine("poet"), engine()) as cluster:
        answers = [await cluster.generate(wanted("poet")) for _ in range(4)]

    assert {answer.started.worker_id for answer in answers} == {"worker-2"}


@pytest.mark.parametrize(("leased", "used"), [("fake", "poet"), ("poet", "sql"), ("poet", "fake")])
async def test_a_lease_for_one_adapter_opens_no_other(leased: str, used: str) -> None:
    async with running_cluster(engine("poet", "sql"), lease_secret="secret") as cluster:
        route = await cluster.routing.Route(
            routing_service_pb2.RouteRequest(request=wanted(leased))
        )
        request = wanted(used, request_id=route.request_id)
        request.tokens.CopyFrom(route.prompt_tokens)
        request.lease.CopyFrom(route.lease)
        async with rpc.channel(route.endpoint) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await collect(stub.Generate(request))

    error = from_rpc_error(caught.value)
    assert isinstance(error, LeaseInvalid)
    assert "adapter" in str(error)


async def test_a_worker_takes_a_routed_request_under_the_name_it_was_asked_by() -> None:
    async with running_cluster(engine("poet"), lease_secret="secret") as cluster:
        route = await cluster.routing.Route(
            routing_service_pb2.RouteRequest(request=wanted("poet"))
        )
        request = wanted("poet", request_id=route.request_id)
        request.tokens.CopyFrom(route.prompt_tokens)
        request.lease.CopyFrom(route.lease)
        async with rpc.channel(route.endpoint) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            answer = await collect(stub.Generate(request))
            tokens = await stub.Tokenize(
                pb.TokenizeRequest(model="fake:poet", text="ab"),
                metadata=internal_metadata(b"secret"),
            )

        assert cluster.engine("worker-1").requests[0].adapter == "poet"
        assert answer.started.model == "fake"
        assert tokens == await cluster.inference.Tokenize(
            pb.TokenizeRequest(model="poet", text="ab")
        )
        text = pb.DetokenizeRequest(model="poet", tokens=tokens.tokens)
        assert (await cluster.inference.Detokenize(text)).text == "ab"
