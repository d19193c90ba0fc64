"""Proxied streams: equal to direct ones, repeated elsewhere before the first token."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock_core.errors import (
    DeadlineExceeded,
    EngineFailed,
    NoWorker,
    Overloaded,
)
from penstock_core.rpc import server as rpc
from penstock_core.rpc.status import from_rpc_error
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.cluster import (
    DEADLINE_S,
    DEFAULT_SETTINGS,
    Answer,
    Cluster,
    ask,
    collect,
    running_cluster,
)

PROMPT = list(range(100))


async def ends_with(cluster: Cluster, request: generate_pb2.GenerateRequest) -> object:
    """The error that a request ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.generate(request)
    return from_rpc_error(caught.value)


async def first_to_run(cluster: Cluster, engines: Sequence[FakeEngine]) -> str:
    """The worker whose engine got a request."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for number, engine in enumerate(engines, 1):
                if engine.requests:
                    return f"worker-{number}"
            await cluster.router.fleet.changes.wait(0.01)


async def test_a_proxied_stream_equals_a_direct_one() -> None:
    async with running_cluster(FakeEngine()) as cluster:
        proxied = await cluster.generate(ask("def add(a, b):", max_tokens=30))
        async with rpc.channel(cluster.workers[0].endpoint) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            direct: Answer = await collect(stub.Generate(ask("def add(a, b):", max_tokens=30)))
    assert (proxied.tokens, proxied.text) == (direct.tokens, direct.text)
    assert proxied.kinds[0] == direct.kinds[0] == "started"
    assert proxied.kinds[-1] == direct.kinds[-1] == "completed"
    assert proxied.started.decision_id.startswith("dec_")
    assert proxied.started.request_id.startswith("req_")


async def test_a_missing_seed_is_filled_in_and_told() -> None:
    engine = FakeEngine()
    async with running_cluster(engine) as cluster:
        answer = await cluster.generate(ask(PROMPT))
        given = ask(PROMPT)
        given.sampling.seed = 7
        assert (await cluster.generate(given)).started.seed == 7
    assert answer.started.seed == engine.requests[0].sampling.seed != 0


async def test_a_worker_killed_before_its_first_token_is_replaced_unseen() -> None:
    engines = [FakeEngine(), FakeEngine()]
    async with running_cluster(*engines) as cluster:
        for engine in engines:
            engine.hold()
        asked = asyncio.create_task(cluster.generate(ask(PROMPT, "req-1")))
        victim = await first_to_run(cluster, engines)
        await cluster.worker(victim).kill()
        for engine in engines:
            engine.release()
        answer = await asked
        explained = await cluster.explain("req-1")
    assert answer.kinds.count("started") == 1
    assert len(answer.tokens) == 4
    assert answer.started.worker_id != victim
    assert explained.decision.attempt == 1
    reasons = {c.worker_id: c.excluded_because for c in explained.decision.candidates}
    assert "failed" in reasons[victim]


async def test_an_overloaded_worker_is_passed_over() -> None:
    full = FakeEngine(FakeConfig(max_batch=1, max_waiting=1))
    free = FakeEngine()
    async with running_cluster(full, free) as cluster:
        full.hold()
        async with rpc.channel(cluster.workers[0].endpoint) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            hogs = [stub.Generate(ask([n] * 40)) for n in (1, 2)]
            await full.until(lambda e: e.state().waiting == 1)
            answers = await asyncio.gather(
                *(cluster.generate(ask([n, *PROMPT], f"req-{n}")) for n in range(10))
            )
            for hog in hogs:
                hog.cancel()
    assert {answer.started.worker_id for answer in answers} == {"worker-2"}


async def test_when_all_are_overloaded_the_client_is_told_so() -> None:
    full = FakeEngine(FakeConfig(max_batch=1, max_waiting=1))
    settings = DEFAULT_SETTINGS.model_copy(update={"max_queued": 1})
    async with running_cluster(full, settings=settings) as cluster:
        full.hold()
        hog = cluster.inference.Generate(ask([1] * 40))
        await full.until(lambda e: bool(e.requests))
        # One of the next two waits in the router, whichever comes first; the other is told.
        rest = [asyncio.create_task(ends_with(cluster, ask([n] * 40))) for n in (2, 3)]
        (told,), waiting = await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)
        error = told.result()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        hog.cancel()
    assert isinstance(error, Overloaded)
    assert error.retry_after_s


async def test_a_failed_engine_before_the_first_token_is_retried() -> None:
    engines = [FakeEngine(), FakeEngine()]
    async with running_cluster(*engines) as cluster:
        for engine in engines:
            engine.hold()
        asked = asyncio.create_task(cluster.generate(ask(PROMPT)))
        victim = await first_to_run(cluster, engines)
        cluster.engine(victim).fail()
        for engine in engines:
            engine.release()
        assert (await asked).started.worker_id != victim


async def test_the_only_worker_failing_is_the_answer() -> None:
    engine = FakeEngine()
    async with running_cluster(engine) as cluster:
        engine.hold()
        asked = asyncio.create_task(ends_with(cluster, ask(PROMPT)))
        await engine.until(lambda e: len(e.requests) == 1)
        engine.fail()
        assert isinstance(await asked, EngineFailed)


async def test_a_clients_cancel_reaches_the_engine_and_frees_everything() -> None:
    engine = FakeEngine()
    async with running_cluster(engine) as cluster:
        engine.hold()
        engine.allow(3)
        stream = cluster.inference.Generate(ask(PROMPT, "req-1", max_tokens=500))
        await anext(aiter(stream))
        stream.cancel()
        await engine.until(lambda e: e.state().running == 0)
        load = cluster.router.fleet.workers()[0].load
        await cluster.until(lambda: load.running() + load.waiting() == 0)
        assert len(cluster.router.picture.pending) == 0
        outcome = (await cluster.explain("req-1")).outcome
    assert outcome.status in ("cancelled", "aborted")


async def test_a_clients_deadline_ends_the_work() -> None:
    engine = FakeEngine()
    async with running_cluster(engine) as cluster:
        engine.hold()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(cluster.inference.Generate(ask(PROMPT), timeout=0.3))
        assert isinstance(from_rpc_error(caught.value), DeadlineExceeded)
        await engine.until(lambda e: e.state().running == 0)


async def test_an_abort_at_the_worker_is_its_outcome_and_no_lost_worker() -> None:
    engine = FakeEngine()
    async with running_cluster(engine, FakeEngine()) as cluster:
        for number in (1, 2):
            cluster.engine(f"worker-{number}").hold()
            cluster.engine(f"worker-{number}").allow(3)
        stream = cluster.inference.Generate(ask(PROMPT, "req-1", max_tokens=500))
        started = (await anext(aiter(stream))).started
        cluster.engine(started.worker_id).abort("req-1")
        cluster.engine(started.worker_id).release()
        assert [e.WhichOneof("event") async for e in stream][-1] == "completed"
        assert (await cluster.explain("req-1")).outcome.status == "aborted"


async def test_without_a_living_worker_the_model_is_known_but_unavailable() -> None:
    async with running_cluster(FakeEngine()) as cluster:
        await cluster.workers[0].kill()
        await cluster.until(lambda: cluster.router.fleet.states() == {"DEAD": 1})
        error = await ends_with(cluster, ask(PROMPT))
    assert isinstance(error, NoWorker)
    assert error.retry_after_s
    assert "DEAD" in error.message
