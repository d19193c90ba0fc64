"""Proxied streams that lose their worker midway: they go on elsewhere, and their clients see nothing."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from penstock.common.v1 import tokens_pb2
from penstock.inference.v1 import generate_pb2
from penstock.worker.v1 import worker_service_pb2, worker_service_pb2_grpc
from penstock_core.blocks import pack_tokens, unpack_tokens
from penstock_core.errors import EngineFailed, InvalidRequest
from penstock_core.rpc import server as rpc
from penstock_core.rpc.status import from_rpc_error
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import (
    DEADLINE_S,
    DEFAULT_SETTINGS,
    Cluster,
    ask,
    collect,
    running_cluster,
)

PROMPT = list(range(100))
QUICK = DEFAULT_SETTINGS.model_copy(update={"stall_s": 0.4})


async def undisturbed(request: generate_pb2.GenerateRequest) -> list[generate_pb2.GenerateResponse]:
    """What a fleet without trouble answers."""
    async with running_cluster(FakeEngine()) as cluster:
        return [e async for e in cluster.inference.Generate(request, timeout=DEADLINE_S)]


async def first_events(
    stream: AsyncIterator[generate_pb2.GenerateResponse], deltas: int
) -> list[generate_pb2.GenerateResponse]:
    """Events up to the given number of deltas."""
    events: list[generate_pb2.GenerateResponse] = []
    while sum(e.HasField("delta") for e in events) < deltas:
        events.append(await anext(stream))
    return events


async def disturbed(
    cluster: Cluster, request: generate_pb2.GenerateRequest, steps: int = 12
) -> tuple[str, list[generate_pb2.GenerateResponse]]:
    """All events of a request whose worker is killed midway, and that worker."""
    for worker in cluster.workers:
        engine = cluster.engine(worker.info.worker_id)
        engine.hold()
        engine.allow(steps)
    stream = aiter(cluster.inference.Generate(request, timeout=DEADLINE_S))
    events = await first_events(stream, 1)
    victim = events[0].started.worker_id
    await cluster.worker(victim).kill()
    for worker in cluster.workers:
        cluster.engine(worker.info.worker_id).release()
    return victim, events + [e async for e in stream]


def texts(events: list[generate_pb2.GenerateResponse]) -> dict[int, str]:
    """The text of each sample; positions must be contiguous."""
    text: dict[int, str] = {}
    tokens: dict[int, int] = {}
    for delta in (e.delta for e in events if e.HasField("delta")):
        index = delta.choice_index
        assert delta.first_position == tokens.get(index, 0), "a position is lost or doubled"
        tokens[index] = tokens.get(index, 0) + len(delta.tokens.ids) // 4
        text[index] = text.get(index, "") + delta.text
    return text


def kinds(events: list[generate_pb2.GenerateResponse]) -> list[str | None]:
    """What the events are."""
    return [event.WhichOneof("event") for event in events]


async def test_a_killed_workers_stream_goes_on_elsewhere_unseen() -> None:
    request = ask(PROMPT, "req-1", max_tokens=60)
    request.sampling.temperature, request.sampling.seed = 1.0, 7
    expected = texts(await undisturbed(request))
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        victim, events = await disturbed(cluster, request)
        explained = await cluster.explain("req-1")
    assert texts(events) == expected
    assert kinds(events).count("started") == 1
    assert kinds(events)[-2:] == ["finished", "completed"]
    assert events[-2].finished.completion_tokens == 60
    assert explained.decision.attempt == 1
    assert explained.decision.chosen_worker_id != victim


async def test_samples_logprobs_and_usage_add_up_over_both_workers() -> None:
    request = ask(PROMPT, max_tokens=30)
    request.sampling.temperature, request.sampling.seed, request.sampling.n = 1.0, 3, 3
    request.output.logprobs = 2
    whole = await undisturbed(request)
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        _, events = await disturbed(cluster, request)
    assert texts(events) == texts(whole)
    for index in range(3):
        told = [e.delta.logprobs for e in events if e.delta.choice_index == index]
        asked = [e.delta.logprobs for e in whole if e.delta.choice_index == index]
        assert [p for ps in told for p in ps] == [p for ps in asked for p in ps]
    sums = [e.finished.cumulative_logprob for e in events if e.HasField("finished")]
    assert sums == pytest.approx(
        [e.finished.cumulative_logprob for e in whole if e.HasField("finished")]
    )
    usage, timing = events[-1].completed.usage, events[-1].completed.timing
    assert usage.completion_tokens == 90
    assert usage.prompt_tokens == len(PROMPT)
    assert usage.cached_tokens == events[0].started.cached_tokens
    assert timing.total_s > timing.ttft_s > 0


async def test_ranked_samples_are_drawn_again_and_come_out_the_same() -> None:
    request = ask(PROMPT, max_tokens=20)
    request.sampling.temperature, request.sampling.seed = 1.0, 5
    request.sampling.n, request.sampling.best_of = 2, 4
    request.output.echo = True
    whole = await undisturbed(request)
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        _, events = await disturbed(cluster, request)
    assert texts(events) == texts(whole)
    assert sum(e.delta.is_echo for e in events) == 2


async def test_a_stream_of_many_messages_is_folded_and_goes_on_all_the_same() -> None:
    request = ask(PROMPT, max_tokens=900)
    expected = texts(await undisturbed(request))
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        for engine in (cluster.engine("worker-1"), cluster.engine("worker-2")):
            engine.hold()
        stream = aiter(cluster.inference.Generate(request, timeout=DEADLINE_S))
        events: list[generate_pb2.GenerateResponse] = []
        asked = asyncio.ensure_future(anext(stream))
        while sum(e.HasField("delta") for e in events) < 300:
            for engine in (cluster.engine("worker-1"), cluster.engine("worker-2")):
                engine.allow(1)
            events.append(await asked)
            asked = asyncio.ensure_future(anext(stream))
        await cluster.worker(events[0].started.worker_id).kill()
        for engine in (cluster.engine("worker-1"), cluster.engine("worker-2")):
            engine.release()
        events.append(await asked)
        events += [e async for e in stream]
    assert texts(events) == expected


async def test_a_stream_that_stands_still_is_moved_and_the_zombies_tokens_are_dropped() -> None:
    request = ask(PROMPT, max_tokens=40)
    expected = texts(await undisturbed(request))
    async with running_cluster(FakeEngine(), FakeEngine(), settings=QUICK) as cluster:
        engines = [cluster.engine(f"worker-{n}") for n in (1, 2)]
        for engine in engines:
            engine.hold()
            engine.allow(10)
        stream = aiter(cluster.inference.Generate(request, timeout=DEADLINE_S))
        events = await first_events(stream, 1)
        zombie = cluster.engine(events[0].started.worker_id)
        other = next(engine for engine in engines if engine is not zombie)
        await other.until(lambda e: bool(e.requests))
        zombie.release()
        other.release()
        events += [e async for e in stream]
        await zombie.until(lambda e: e.state().running == 0)
    assert texts(events) == expected
    assert events[-1].HasField("completed")
    emitted = other.requests[0].emitted[0]
    assert (
        list(emitted)
        == list(unpack_tokens(b"".join(e.delta.tokens.ids for e in events)))[: len(emitted)]
    )


async def test_a_silent_worker_is_kept_while_there_is_no_other() -> None:
    engine = FakeEngine()
    async with running_cluster(engine, settings=QUICK) as cluster:
        engine.hold()
        engine.allow(5)
        stream = aiter(cluster.inference.Generate(ask(PROMPT, max_tokens=20), timeout=DEADLINE_S))
        events = await first_events(stream, 1)
        reading = asyncio.ensure_future(collect_rest(stream))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(reading), 2 * QUICK.stall_s)
        engine.release()
        events += await reading
    assert len(engine.requests) == 1
    assert len(texts(events)[0]) == 20


async def collect_rest(
    stream: AsyncIterator[generate_pb2.GenerateResponse],
) -> list[generate_pb2.GenerateResponse]:
    """All that is left."""
    return [e async for e in stream]


async def test_a_draining_workers_streams_are_moved_by_the_deadline() -> None:
    request = ask(PROMPT, max_tokens=50)
    expected = texts(await undisturbed(request))
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        engines = [cluster.engine(f"worker-{n}") for n in (1, 2)]
        for engine in engines:
            engine.hold()
            engine.allow(10)
        stream = aiter(cluster.inference.Generate(request, timeout=DEADLINE_S))
        events = await first_events(stream, 1)
        leaving = cluster.worker(events[0].started.worker_id)
        async with rpc.channel(leaving.endpoint) as channel:
            stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
            drained = await stub.Drain(worker_service_pb2.DrainRequest(grace_s=0.1))
        for engine in engines:
            if engine is not leaving.engine:
                engine.release()
        events += [e async for e in stream]
    assert drained.aborted == 1
    assert texts(events) == expected


async def test_a_client_may_go_on_through_the_router_with_what_it_has() -> None:
    request = ask(PROMPT, max_tokens=40)
    whole = texts(await undisturbed(request))[0]
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        state = request.resume.choices.add(emitted_chars=10)
        state.emitted.CopyFrom(tokens_pb2.TokenIds(ids=pack_tokens(list(whole[:10].encode()))))
        request.resume.attempt = 1
        _, events = await disturbed(cluster, request)
    assert "".join(e.delta.text for e in events) == whole[10:]
    assert next(e for e in events if e.HasField("delta")).delta.first_position == 10
    assert events[-1].completed.usage.completion_tokens == 40


async def test_a_request_that_breaks_every_worker_is_given_up() -> None:
    poisoned = asyncio.Event()

    async def pace(_: int) -> None:
        for engine in engines if poisoned.is_set() else ():
            if engine.state().running:
                engine.fail()

    engines = [FakeEngine(pace=pace) for _ in range(6)]
    async with running_cluster(*engines) as cluster:
        for engine in engines:
            engine.hold()
            engine.allow(4)
        stream = aiter(cluster.inference.Generate(ask(PROMPT, max_tokens=50), timeout=DEADLINE_S))
        events = await first_events(stream, 1)
        poisoned.set()
        for engine in engines:
            engine.release()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            events += [e async for e in stream]
    assert isinstance(from_rpc_error(caught.value), EngineFailed)
    assert sum(bool(engine.requests) for engine in engines) < len(engines)


async def test_what_no_worker_can_help_ends_the_stream() -> None:
    async with running_cluster(FakeEngine()) as cluster:
        request = ask(PROMPT, max_tokens=5)
        request.resume.choices.add(choice_index=3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(cluster.inference.Generate(request, timeout=DEADLINE_S))
    assert isinstance(from_rpc_error(caught.value), InvalidRequest)
