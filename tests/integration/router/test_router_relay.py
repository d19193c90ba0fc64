"""Forwarded streams that share a call to their worker: none holds another, and each may do without."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock.worker.v1 import worker_service_pb2
from penstock_core.rpc import server as rpc
from penstock_router.process import running_router
from penstock_router.relay import relay as relays
from penstock_testing.callers.calls import calls_to
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.cluster import (
    DEADLINE_S,
    DEFAULT_SETTINGS,
    Cluster,
    ask,
    collect,
    running_cluster,
)
from penstock_testing.servers.worker import running_worker

MANY = FakeConfig(max_batch=256, max_waiting=256, max_context_tokens=100_000)
PROMPT = list(range(40))


def impatient(target: str) -> grpc.aio.Channel:
    """A channel that takes little before it is read."""
    return grpc.aio.insecure_channel(target, options=(("grpc.http2.bdp_probe", 0),))


def relayed(cluster: Cluster) -> int:
    """Streams that share a call to the first worker."""
    fleet = cluster.router.fleet
    return fleet.line(fleet.workers()[0]).shared


async def test_many_streams_share_a_call_and_each_gets_its_own() -> None:
    async with running_cluster(FakeEngine(MANY)) as cluster:
        engine = cluster.engine("worker-1")
        engine.hold()
        asked = [
            asyncio.create_task(cluster.generate(ask([number, *PROMPT], max_tokens=30)))
            for number in range(60)
        ]
        await engine.until(lambda e: e.state().running + e.state().waiting == 60)
        together = relayed(cluster)
        engine.release()
        answers = await asyncio.gather(*asked)
        alone = [await cluster.generate(ask([n, *PROMPT], max_tokens=30)) for n in range(0, 60, 20)]
    assert together == 60
    assert [a.text for a in answers[::20]] == [a.text for a in alone]
    assert all(len(a.tokens) == 30 for a in answers)


async def test_a_client_that_does_not_read_holds_nobody_and_its_worker_waits() -> None:
    async with (
        running_cluster(FakeEngine(MANY)) as cluster,
        impatient(cluster.router.endpoint) as apart,
    ):
        idle = inference_service_pb2_grpc.InferenceServiceStub(apart)
        # Each token with its log-probabilities: more than connections and windows hold.
        request = ask(PROMPT, "slow", max_tokens=6_000)
        request.output.logprobs = 20
        stream = aiter(idle.Generate(request, timeout=DEADLINE_S))
        await anext(stream)
        engine = cluster.engine("worker-1")
        await engine.until(lambda e: e.state().running == 0)  # it slows no engine either
        others = [await cluster.generate(ask([n, *PROMPT])) for n in range(5)]
        assert relayed(cluster) == 1
        async with calls_to(cluster.workers[0].endpoint) as calls:
            told = await calls.control.GetWorker(worker_service_pb2.GetWorkerRequest())
        assert list(told.request_ids) == ["slow"], "the rest of it waits at the worker"
        rest = [event async for event in stream]
    assert all(len(a.tokens) == 4 for a in others)
    assert rest[-1].completed.usage.completion_tokens == 6_000


async def test_a_client_that_goes_leaves_nothing_in_the_relay() -> None:
    async with running_cluster(FakeEngine(MANY)) as cluster:
        engine = cluster.engine("worker-1")
        engine.hold()
        streams = [cluster.inference.Generate(ask([n, *PROMPT], max_tokens=500)) for n in range(5)]
        await engine.until(lambda e: e.state().running + e.state().waiting == 5)
        assert relayed(cluster) == 5
        for stream in streams:
            stream.cancel()
        await engine.until(lambda e: e.state().running + e.state().waiting == 0)
        await cluster.until(lambda: relayed(cluster) == 0)


async def test_a_relay_begins_anew_after_it_broke() -> None:
    async with running_cluster(FakeEngine(MANY), FakeEngine(MANY)) as cluster:
        first = await cluster.generate(ask(PROMPT))
        await cluster.worker(first.started.worker_id).kill()
        again = await cluster.generate(ask(PROMPT))
    assert again.started.worker_id != first.started.worker_id
    assert again.text == first.text


async def test_a_request_too_large_to_share_goes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock_router.relay.line.MAX_REQUEST_BYTES", 1000)
    async with running_cluster(FakeEngine(MANY)) as cluster:
        engine = cluster.engine("worker-1")
        engine.hold()
        asked = [
            asyncio.create_task(cluster.generate(ask(prompt))) for prompt in (PROMPT, [7] * 800)
        ]
        await engine.until(lambda e: e.state().running + e.state().waiting == 2)
        together = relayed(cluster)
        engine.release()
        answers = await asyncio.gather(*asked)
    assert together == 1
    assert all(len(a.tokens) == 4 for a in answers)


async def test_streams_beyond_what_a_relay_takes_go_by_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relays, "MAX_STREAMS", 2)
    async with running_cluster(FakeEngine(MANY)) as cluster:
        engine = cluster.engine("worker-1")
        engine.hold()
        asked = [asyncio.create_task(cluster.generate(ask([n, *PROMPT]))) for n in range(5)]
        await engine.until(lambda e: e.state().running + e.state().waiting == 5)
        together = relayed(cluster)
        engine.release()
        answers = await asyncio.gather(*asked)
    assert together == 2
    assert all(len(a.tokens) == 4 for a in answers)


async def test_relays_can_be_switched_off() -> None:
    settings = DEFAULT_SETTINGS.model_copy(update={"relay": False})
    async with running_cluster(FakeEngine(MANY), settings=settings) as cluster:
        assert await shared_by_one(cluster) == 0


async def test_by_default_there_are_relays() -> None:
    async with running_cluster(FakeEngine(MANY)) as cluster:
        assert await shared_by_one(cluster) == 1


async def shared_by_one(cluster: Cluster) -> int:
    """How many share a call while one stream runs, which then is answered."""
    engine = cluster.engine("worker-1")
    engine.hold()
    asked = asyncio.create_task(cluster.generate(ask(PROMPT)))
    await engine.until(lambda e: bool(e.requests))
    shared = relayed(cluster)
    engine.release()
    assert len((await asked).tokens) == 4
    return shared


@asynccontextmanager
async def router_before_an_older_worker() -> AsyncIterator[Cluster]:
    """A worker that knows no relays, and says so by saying nothing of them."""
    async with running_worker(FakeEngine(MANY)) as worker:
        worker.info.relays = False
        settings = DEFAULT_SETTINGS.model_copy(update={"workers": worker.endpoint})
        async with running_router(settings) as router, rpc.channel(router.endpoint) as to:
            inference = inference_service_pb2_grpc.InferenceServiceStub(to)
            cluster = Cluster(router, [worker], inference, None)  # type: ignore[arg-type]
            await cluster.live(1)
            yield cluster


async def test_a_worker_of_an_earlier_version_gets_calls_of_their_own() -> None:
    async with router_before_an_older_worker() as cluster:
        assert await shared_by_one(cluster) == 0
        request: generate_pb2.GenerateRequest = ask(PROMPT)
        answer = await collect(cluster.inference.Generate(request, timeout=DEADLINE_S))
    assert len(answer.tokens) == 4
