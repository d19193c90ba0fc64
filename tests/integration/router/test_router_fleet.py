"""The fleet as the router sees it: who comes, goes, restarts, drains."""

import asyncio
import json
from collections.abc import AsyncIterable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from blockbuster import BlockBuster

from penstock.inference.v1 import inference_service_pb2_grpc
from penstock.routing.v1 import decision_pb2
from penstock.routing.v1 import routing_service_pb2 as pb
from penstock_core.errors import Draining, NoWorker
from penstock_core.rpc import server as rpc
from penstock_core.rpc.status import from_rpc_error
from penstock_router.process import running_router
from penstock_router.settings import RouterSettings
from penstock_router.simulate.recorded import read_requests
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.engines.models import write_byte_tokenizer
from penstock_testing.processes.redis import redis_server
from penstock_testing.servers.cluster import (
    DEADLINE_S,
    DEFAULT_SETTINGS,
    Cluster,
    ask,
    collect,
    running_cluster,
)
from penstock_testing.servers.worker import DEFAULT_OPTIONS, running_worker
from penstock_testing.state.index_check import check_integrity

TEXT = "the same long beginning, " * 20


def held(cluster: Cluster) -> dict[str, int]:
    """Indexed blocks by epoch."""
    workers = cluster.router.fleet.workers()
    return {w.sync.epoch: w.sync.indexed_blocks() for w in workers if w.sync.epoch}


async def test_a_worker_restarted_on_its_port_has_a_new_epoch_and_a_clean_index() -> None:
    async with running_cluster(FakeEngine()) as cluster:
        old = cluster.workers[0]
        await cluster.generate(ask(TEXT))
        await cluster.until(lambda: held(cluster) == {old.info.epoch: 15})
        await old.kill()
        options = replace(DEFAULT_OPTIONS, listen=old.endpoint)
        async with running_worker(options=options) as new:
            await cluster.until(lambda: held(cluster) == {new.info.epoch: 0})
            assert len(cluster.router.picture.index) == 0
            answer = await cluster.generate(ask(TEXT, "again"))
            explained = await cluster.explain("again")
    assert answer.started.epoch == new.info.epoch != old.info.epoch
    assert answer.started.cached_tokens == explained.outcome.predicted_cached_tokens == 0


async def test_a_restarted_router_knows_at_once_what_workers_hold() -> None:
    async with running_cluster(FakeEngine()) as cluster:
        await cluster.generate(ask(TEXT))
        settings = DEFAULT_SETTINGS.model_copy(update={"workers": cluster.workers[0].endpoint})
        async with running_router(settings) as second:
            async with asyncio.timeout(DEADLINE_S):
                while len(second.picture.index) < len(cluster.router.picture.index):
                    await second.fleet.changes.wait(0.05)
            check_integrity(second.picture.index)


async def test_evictions_reach_the_index() -> None:
    engine = FakeEngine()
    async with running_cluster(engine) as cluster:
        await cluster.generate(ask(TEXT))
        await cluster.until(lambda: len(cluster.router.picture.index) > 0)
        engine.drop_cache()
        await cluster.until(lambda: len(cluster.router.picture.index) == 0)
        answer = await cluster.generate(ask(TEXT, "again"))
        assert (await cluster.explain("again")).outcome.predicted_cached_tokens == 0
        assert answer.started.cached_tokens == 0


async def test_a_draining_worker_gets_nothing_new() -> None:
    first, second = FakeEngine(), FakeEngine()
    async with running_cluster(first, second) as cluster:
        first.hold()
        second.hold()
        asked = asyncio.create_task(cluster.generate(ask(TEXT)))
        while not first.requests and not second.requests:
            await cluster.router.fleet.changes.wait(0.01)
        number = 1 if first.requests else 2
        draining = asyncio.create_task(cluster.workers[number - 1].worker.drain(DEADLINE_S))
        await cluster.until(lambda: cluster.router.fleet.workers()[number - 1].load.report.draining)
        first.release()
        second.release()
        others = [await cluster.generate(ask([n] * 40)) for n in range(5)]
        await draining
    assert (await asked).started.worker_id == f"worker-{number}"
    assert {a.started.worker_id for a in others} == {f"worker-{3 - number}"}


async def test_a_drain_of_the_only_worker_is_told_as_such() -> None:
    async with running_cluster(FakeEngine()) as cluster:
        await cluster.workers[0].worker.drain(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(ask(TEXT))
    assert isinstance(from_rpc_error(caught.value), NoWorker | Draining)


async def test_workers_are_found_in_the_registry_and_let_go_when_they_leave(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # redis-py looks up its own version on the disk with each connection.
    guard: BlockBuster = request.getfixturevalue("_no_blocking_calls")
    guard.functions["os.stat"].deactivate()
    async with AsyncExitStack() as stack:
        url = stack.enter_context(redis_server())
        settings = RouterSettings(listen="127.0.0.1:0", registry_url=url, grace_s=0.5)
        router = await stack.enter_async_context(running_router(settings))
        fleet = router.fleet
        worker = await stack.enter_async_context(running_worker(registry_url=url))
        async with asyncio.timeout(DEADLINE_S):
            while fleet.states() != {"LIVE": 1}:
                await fleet.changes.wait(0.1)
            gone: list[str] = []
            monkeypatch.setattr(router.picture.metrics, "gone", gone.append)
            (name,) = (w.worker_id for w in fleet.workers())
            await worker.stop()
            while fleet.states() or not gone:
                await fleet.changes.wait(0.1)
        with pytest.raises(NoWorker):
            fleet.serving("fake")
        assert gone == [name]


async def test_a_worker_with_another_tokenizer_is_left_out(tmp_path: Path) -> None:
    directory = write_byte_tokenizer(tmp_path)
    async with running_worker(worker_id="odd", model=directory) as odd:
        # Its files change under it: it says one thing, what lies there says another.
        write_byte_tokenizer(tmp_path, chat_template=None)
        file = directory / "tokenizer.json"
        changed = json.loads(file.read_text()) | {"truncation": None}
        file.write_text(json.dumps(changed))
        settings = DEFAULT_SETTINGS.model_copy(update={"workers": odd.endpoint})
        async with running_cluster(FakeEngine()) as cluster, running_router(settings) as router:
            async with asyncio.timeout(DEADLINE_S):
                while router.fleet.states() != {"LIVE": 1}:
                    await router.fleet.changes.wait(0.1)
            assert await cluster.generate(ask(TEXT))
            stub_error = await _refusal(router.endpoint)
    assert isinstance(stub_error, NoWorker)
    assert "tokenizer" in stub_error.message


async def _refusal(endpoint: str) -> object:
    async with rpc.channel(endpoint) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(stub.Generate(ask([1, 2, 3])))
    return from_rpc_error(caught.value)


async def test_two_models_are_told_apart_and_listed() -> None:
    options = replace(DEFAULT_OPTIONS, worker_id="other", models=("other", "alias"))
    engine = FakeEngine(FakeConfig(model_revision="fake-2"))
    async with running_worker(engine, options=options) as other:
        settings = DEFAULT_SETTINGS.model_copy(update={"workers": other.endpoint})
        async with running_router(settings) as router:
            async with asyncio.timeout(DEADLINE_S):
                while router.fleet.states() != {"LIVE": 1}:
                    await router.fleet.changes.wait(0.1)
            assert sorted(router.fleet.models()) == ["alias", "other"]
            assert [w.worker_id for w in router.fleet.serving("alias")] == ["other"]


async def test_the_fleet_is_watched_and_listed() -> None:
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        listed = await cluster.routing.ListWorkers(pb.ListWorkersRequest(model="fake"))
        none = await cluster.routing.ListWorkers(pb.ListWorkersRequest(model="other"))
        watch = cluster.routing.WatchFleet(pb.WatchFleetRequest())
        await anext(aiter(watch))
        await cluster.workers[1].kill()
        async for seen in watch:
            if seen.workers[1].sync_state == pb.SYNC_STATE_DEAD:
                break
        watch.cancel()
    assert [w.info.worker_id for w in listed.workers] == ["worker-1", "worker-2"]
    assert listed.workers[0].sync_state == pb.SYNC_STATE_LIVE
    assert listed.workers[0].info.capacity_blocks == 1024
    assert not none.workers


async def first_decision(
    watch: AsyncIterable[pb.WatchDecisionsResponse],
) -> decision_pb2.DecisionRecord:
    async for entry in watch:
        if entry.HasField("decision"):
            return entry.decision
    raise AssertionError("the watch ended")


async def test_decisions_are_watched_and_logged(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    settings = DEFAULT_SETTINGS.model_copy(update={"decision_log": str(log)})
    async with running_cluster(FakeEngine(), settings=settings) as cluster:
        watch = cluster.routing.WatchDecisions(pb.WatchDecisionsRequest())
        reading = asyncio.ensure_future(first_decision(watch))  # an outcome may come before it
        number = 0
        while not reading.done():
            number += 1
            await cluster.generate(ask(TEXT, f"req-{number}"))
        assert (await reading).model == "fake"
        watch.cancel()
        await cluster.explain("req-1")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0]["decision"]["request_id"] == "req-1"
    assert any(line.get("outcome", {}).get("status") == "OK" for line in lines)


async def test_a_decision_log_is_a_trace_of_what_was_asked(tmp_path: Path) -> None:
    log, shared = tmp_path / "decisions.jsonl", [n % 200 for n in range(700)]
    settings = DEFAULT_SETTINGS.model_copy(update={"decision_log": str(log)})
    async with running_cluster(FakeEngine(), settings=settings) as cluster:
        for name, own in (("req-1", 201), ("req-2", 202)):
            await cluster.generate(ask([*shared, *[own] * 700], name))
            await cluster.explain(name)
    first, second = read_requests(log, 512)
    assert (first.request_id, first.prompt_tokens, first.output_tokens) == ("req-1", 1400, 4)
    assert first.blocks[0] == second.blocks[0]
    assert first.blocks[1] != second.blocks[1]
