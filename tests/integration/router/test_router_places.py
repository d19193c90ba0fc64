"""Aliases, pools, canaries, fall-backs and zones over real workers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest

from penstock.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from penstock.routing.v1 import routing_service_pb2, routing_service_pb2_grpc
from penstock_core.errors import ModelNotFound
from penstock_core.rpc import server as rpc
from penstock_core.rpc.status import from_rpc_error
from penstock_router.process import RunningRouter, running_router
from penstock_router.settings import RouterSettings
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.cluster import DEADLINE_S, Answer, ask, collect
from penstock_testing.servers.worker import RunningWorker, running_worker
from penstock_worker.worker import Options

PROMPT = list(range(100))


class Places:
    """A router over workers of several kinds."""

    def __init__(
        self, router: RunningRouter, workers: list[RunningWorker], channel: grpc.aio.Channel
    ):
        self.router, self.workers = router, workers
        self.inference = inference_service_pb2_grpc.InferenceServiceStub(channel)
        self.routing = routing_service_pb2_grpc.RoutingServiceStub(channel)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true of the router's picture. Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await self.router.fleet.changes.wait(0.05)

    async def ask(self, model: str, request_id: str = "") -> Answer:
        """A request for a model by some name."""
        request = ask(PROMPT, request_id, model=model)
        return await collect(self.inference.Generate(request, timeout=DEADLINE_S))


@asynccontextmanager
async def places(
    tmp_path: Path,
    workers: list[tuple[Options, FakeEngine]],
    models: Mapping[str, object],
    zone: str = "",
) -> AsyncIterator[Places]:
    """Workers with these options before a router with this catalogue."""
    file = tmp_path / "catalog.json"
    file.write_text(json.dumps({"models": models}))
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(running_worker(engine, options=options))
            for options, engine in workers
        ]
        chosen = RouterSettings(
            listen="127.0.0.1:0",
            grace_s=0.5,
            catalog=str(file),
            workers=",".join(w.endpoint for w in running),
            zone=zone,
            zone_penalty_s=0.2,
        )
        router = await stack.enter_async_context(running_router(chosen))
        channel = await stack.enter_async_context(rpc.channel(router.endpoint))
        async with asyncio.timeout(DEADLINE_S):
            while router.fleet.states().get("LIVE", 0) < len(running):
                await router.fleet.changes.wait(0.05)
        yield Places(router, running, channel)


def worker(name: str, model: str = "fake", pool: str = "", zone: str = "") -> Options:
    """What a worker is told."""
    return Options(worker_id=name, models=(model,), pool=pool, zone=zone)


async def test_an_alias_leads_to_its_model_and_is_listed(tmp_path: Path) -> None:
    models = {"gpt": {"routes": [{"model": "fake"}]}}
    async with places(tmp_path, [(worker("w1"), FakeEngine())], models) as at:
        answer = await at.ask("gpt")
        listed = await at.inference.ListModels(inference_service_pb2.ListModelsRequest())
        tokens = await at.inference.Tokenize(
            inference_service_pb2.TokenizeRequest(model="gpt", text="abc")
        )
        found = await at.routing.Route(
            routing_service_pb2.RouteRequest(request=ask(PROMPT, model="gpt"))
        )
    assert answer.started.model == found.model == "fake"
    assert [model.name for model in listed.models] == ["fake", "gpt"]
    assert len(tokens.tokens.ids) == 12


async def test_an_alias_may_lead_to_an_adapter(tmp_path: Path) -> None:
    models = {"bard": {"routes": [{"model": "fake:poet"}]}}
    with_poet = FakeEngine(FakeConfig(adapters=("poet",)))
    workers = [(worker("plain"), FakeEngine()), (worker("adapted"), with_poet)]
    async with places(tmp_path, workers, models) as fleet:
        for number in range(4):
            answer = await fleet.ask("bard", f"bard-{number}")
            assert answer.started.worker_id == "adapted"


async def test_a_name_that_nobody_knows_is_not_found(tmp_path: Path) -> None:
    models = {"gpt": {"routes": [{"model": "fake"}]}}
    async with places(tmp_path, [(worker("w1"), FakeEngine())], models) as at:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await at.ask("gtp")
    assert isinstance(from_rpc_error(caught.value), ModelNotFound)


async def test_a_pool_serves_its_own_name_only(tmp_path: Path) -> None:
    models = {"fast": {"routes": [{"model": "fake", "pool": "gold"}]}}
    fleet = [(worker("w1"), FakeEngine()), (worker("w2", pool="gold"), FakeEngine())]
    async with places(tmp_path, fleet, models) as at:
        answers = [await at.ask("fast", f"req-{n}") for n in range(4)]
    assert {answer.started.worker_id for answer in answers} == {"w2"}


async def test_requests_are_shared_between_two_revisions_by_weight(tmp_path: Path) -> None:
    routes = [
        {"model": "fake", "revision": "one", "weight": 3},
        {"model": "fake", "revision": "two", "weight": 1},
    ]
    engines = [FakeEngine(FakeConfig(model_revision=revision)) for revision in ("one", "two")]
    fleet = [(worker("w1"), engines[0]), (worker("w2"), engines[1])]
    async with places(tmp_path, fleet, {"chat": {"routes": routes}}) as at:
        for number in range(60):
            await at.ask("chat", f"req-{number}")
    assert len(engines[0].requests) > len(engines[1].requests) > 3


async def test_a_model_without_room_falls_back_on_another(tmp_path: Path) -> None:
    models = {
        "chat": {
            "routes": [{"model": "large"}],
            "fallback": [{"model": "absent"}, {"model": "small"}],
            "max_waiting": 1,
        }
    }
    large = FakeEngine(FakeConfig(max_batch=1))
    fleet = [(worker("w1", "large"), large), (worker("w2", "small"), FakeEngine())]
    async with places(tmp_path, fleet, models) as at:
        assert (await at.ask("chat")).started.model == "large"
        load = at.router.fleet.serving("large")[0].load
        await at.until(lambda: load.waiting() + load.running() == 0)
        large.hold()
        stuck = asyncio.create_task(at.ask("chat", "stuck"))
        await at.until(lambda: load.waiting() == 1)
        assert (await at.ask("chat", "req-3")).started.model == "small"
        large.release()
        await stuck
        await at.workers[0].kill()
        await at.until(lambda: at.router.fleet.states().get("LIVE", 0) == 1)
        assert (await at.ask("chat", "req-4")).started.model == "small"


async def test_a_near_zone_is_preferred_until_it_is_busy(tmp_path: Path) -> None:
    near, far = FakeEngine(FakeConfig(max_batch=2)), FakeEngine()
    fleet = [(worker("w-near", zone="a"), near), (worker("w-far", zone="b"), far)]
    async with places(tmp_path, fleet, {}, zone="a") as at:
        for number in range(5):
            request = ask([number] * 50)
            await collect(at.inference.Generate(request, timeout=DEADLINE_S))
        assert not far.requests
        near.hold()
        stuck = [
            at.inference.Generate(ask([number + 10] * 2000), timeout=DEADLINE_S)
            for number in range(12)
        ]
        await far.until(lambda e: bool(e.requests))
        near.release()
        for call in stuck:
            await collect(call)
