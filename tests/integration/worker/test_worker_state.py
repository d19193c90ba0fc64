"""WatchState over real sockets: a subscriber's picture is the engine's truth, however it came by."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import cast

import pytest

from penstock.inference.v1.generate_pb2 import GenerateRequest
from penstock.worker.v1 import state_pb2, worker_service_pb2
from penstock_core.errors import Overloaded
from penstock_engine.api import KvStored
from penstock_testing.callers.calls import calls_to, watching
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.worker import DEFAULT_OPTIONS, running_worker
from penstock_testing.state.picture import Picture
from penstock_worker.accounting.metrics import EngineGauges
from penstock_worker.state.feed import MAX_SUBSCRIBERS, FeedTiming, StateFeed
from penstock_worker.state.log import StateLog

QUICK = replace(DEFAULT_OPTIONS, feed=FeedTiming(delta_s=0.0, progress_s=0.01, heartbeat_s=0.02))


def ask(number: int, request_id: str = "", max_tokens: int = 4) -> GenerateRequest:
    text = f"prompt number {number} " * 10
    request = GenerateRequest(model="fake", text=text, request_id=request_id)
    request.stop.max_tokens = max_tokens
    return request


def finished(picture: Picture, request_id: str) -> bool:
    return any(e.finished.request_id == request_id for e in picture.ledger)


async def test_a_subscriber_gets_a_snapshot_and_then_changes() -> None:
    engine = FakeEngine(FakeConfig(capacity_blocks=20))
    async with running_worker(engine, options=QUICK) as worker, calls_to(worker.endpoint) as calls:
        await calls.generate(ask(0))
        async with watching(calls) as watch:
            assert watch.picture.parents
            for number in range(1, 8):
                await calls.generate(ask(number))
            await calls.generate(ask(9, "last"))
            await watch.until(
                lambda p: finished(p, "last") and set(p.parents) == engine.cache.hashes
            )

    assert watch.picture.snapshots == 1
    assert watch.picture.epoch == worker.info.epoch
    assert len(watch.picture.parents) == 20, "blocks were evicted on the way"


async def test_a_known_position_is_resumed_without_a_snapshot() -> None:
    async with running_worker(options=QUICK) as worker, calls_to(worker.endpoint) as calls:
        async with watching(calls) as watch:
            await calls.generate(ask(0, "a"))
            before = await watch.until(lambda p: finished(p, "a") and bool(p.heartbeats))
        await calls.generate(ask(1, "b"))

        frames = calls.control.WatchState(
            worker_service_pb2.WatchStateRequest(epoch=before.epoch, resume_after_seq=before.seq)
        )
        async with asyncio.timeout(20):
            async for frame in frames:
                if before.take(frame) == "heartbeat" and finished(before, "b"):
                    break
        async with watching(calls) as fresh:
            assert before.parents == fresh.picture.parents

    assert before.snapshots == 1


@pytest.mark.parametrize("why", ["another epoch", "too long ago", "the future"])
async def test_a_position_that_cannot_be_resumed_gets_a_snapshot(why: str) -> None:
    options = replace(QUICK, ring_deltas=2 if why == "too long ago" else 4096)
    async with running_worker(options=options) as worker, calls_to(worker.endpoint) as calls:
        for number in range(4):
            await calls.generate(ask(number))
        epoch = "before" if why == "another epoch" else worker.info.epoch
        after = {"another epoch": 1, "too long ago": 1, "the future": 10_000}[why]

        first = await anext(
            aiter(
                calls.control.WatchState(
                    worker_service_pb2.WatchStateRequest(epoch=epoch, resume_after_seq=after)
                )
            )
        )

    assert first.WhichOneof("frame") == "snapshot_begin"
    assert first.snapshot_begin.info.worker_id == worker.info.worker_id


async def test_an_idle_worker_beats_and_its_digest_agrees() -> None:
    async with running_worker(options=QUICK) as worker, calls_to(worker.endpoint) as calls:
        await calls.generate(ask(0))
        async with watching(calls) as watch:
            picture = await watch.until(lambda p: len(p.heartbeats) >= 3)

    assert picture.heartbeats[-1].num_blocks == len(picture.parents) > 0
    assert picture.heartbeats[-1].load.health == state_pb2.WORKER_HEALTH_SERVING
    assert picture.heartbeats[-1].load.capacity_blocks == 1024


async def test_the_ledger_tells_a_requests_life() -> None:
    engine = FakeEngine(FakeConfig(drafts=(9, 4)))
    async with running_worker(engine, options=QUICK) as worker, calls_to(worker.endpoint) as calls:
        await calls.generate(ask(0))
        async with watching(calls) as watch:
            engine.hold()
            running = asyncio.create_task(calls.generate(ask(0, "r", max_tokens=5)))
            await watch.until(lambda p: any(e.progress.load.running == 1 for e in p.ledger))
            async with watching(calls) as late:
                opened = list(late.picture.ledger)
            engine.release()
            await running
            picture = await watch.until(lambda p: finished(p, "r"))

    assert [e.admitted.request_id for e in opened] == ["r"], "a snapshot brings open requests"
    events = {e.WhichOneof("event"): e for e in picture.ledger}
    prompt = len(ask(0).text)
    cached = (prompt - 1) // 32 * 32
    assert events["admitted"].admitted.prompt_tokens == prompt
    assert events["admitted"].admitted.cached_tokens == cached
    assert events["prefill_done"].prefill_done.cached_tokens == cached
    assert events["prefill_done"].prefill_done.computed_tokens == prompt - cached
    assert events["prefill_done"].prefill_done.ttft_s > 0
    assert events["finished"].finished.output_tokens == 5
    assert events["finished"].finished.drafted_tokens == 9
    assert events["finished"].finished.accepted_draft_tokens == 4
    assert not events["finished"].finished.aborted


async def test_a_cancelled_request_is_entered_as_aborted() -> None:
    engine = FakeEngine()
    engine.hold()
    async with (
        running_worker(engine, options=QUICK) as worker,
        calls_to(worker.endpoint) as calls,
        watching(calls) as watch,
    ):
        stream = calls.inference.Generate(ask(0, "r"))
        await stream.read()
        stream.cancel()
        picture = await watch.until(lambda p: finished(p, "r"))

    (end,) = [e.finished for e in picture.ledger if e.HasField("finished")]
    assert end.aborted


def feed_of(engine: FakeEngine, ring_deltas: int) -> tuple[StateFeed, StateLog]:
    log = StateLog("epoch", state_pb2.WorkerInfo(), ring_deltas)
    return StateFeed(log, engine, EngineGauges(1), FeedTiming(0.0, 60.0, 60.0)), log


async def test_a_subscriber_that_falls_out_of_the_ring_resyncs_and_nobody_waits() -> None:
    engine = FakeEngine()
    feed, log = feed_of(engine, ring_deltas=3)
    slow, quick = Picture(), Picture()
    async with aclosing(feed.watch("", 0)) as slow_frames, aclosing(feed.watch("", 0)) as frames:
        for _ in range(2):
            slow.take(await anext(slow_frames))
            quick.take(await anext(frames))
        for key in range(1, 11):
            log.apply([KvStored(key - 1 + 10**6 * (key == 1), (key,))])
            log.flush()
            if key == 1:
                assert quick.take(await anext(frames)) == "delta"

        while slow.seq < log.seq or len(slow.parents) < 10:
            slow.take(await anext(slow_frames))

    assert slow.snapshots == 2
    assert set(slow.parents) == set(range(1, 11))


async def test_changes_that_come_together_travel_together() -> None:
    engine = FakeEngine()
    log = StateLog("epoch", state_pb2.WorkerInfo())
    feed = StateFeed(log, engine, EngineGauges(1), FeedTiming(3600.0, 3600.0, 3600.0))
    running = asyncio.create_task(feed.run())
    async with aclosing(feed.watch("", 0)) as frames:
        picture = Picture()
        for _ in range(2):
            picture.take(await anext(frames))
        feed.note(state_pb2.LedgerEvent(admitted=state_pb2.Admitted(request_id="a")))
        picture.take(await anext(frames))
        for key in range(100):
            engine.cache.store(key + 1000, [key])
        engine.drop_cache()
        feed.note(state_pb2.LedgerEvent(admitted=state_pb2.Admitted(request_id="b")))
        for _ in range(20):
            await asyncio.sleep(0)

        assert log.seq == 1, "the next delta waits for its time"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_subscribers_are_bounded() -> None:
    feed, _ = feed_of(FakeEngine(), ring_deltas=3)
    watches = [feed.watch("", 0) for _ in range(MAX_SUBSCRIBERS)]
    for watch in watches:
        await anext(watch)

    with pytest.raises(Overloaded):
        await anext(feed.watch("", 0))

    for watch in watches:
        await watch.aclose()
    last = feed.watch("", 0)
    assert await anext(last)
    await last.aclose()


async def test_get_worker_describes_it() -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        got = await calls.control.GetWorker(worker_service_pb2.GetWorkerRequest())

    assert cast("object", got.info) == worker.info
    assert got.info.endpoint == worker.endpoint
    assert got.load.health == state_pb2.WORKER_HEALTH_SERVING


async def test_blocks_wait_a_moment_for_others_and_travel_with_the_ledger() -> None:
    engine = FakeEngine()
    log = StateLog("epoch", state_pb2.WorkerInfo())
    feed = StateFeed(log, engine, EngineGauges(1), FeedTiming(0.0, 3600.0, 3600.0, cache_s=3600.0))
    running = asyncio.create_task(feed.run())
    async with aclosing(feed.watch("", 0)) as frames:
        picture = Picture()
        for _ in range(2):
            picture.take(await anext(frames))
        engine.cache.store(1000, [1, 2])
        for _ in range(20):
            await asyncio.sleep(0)
        assert log.seq == 0, "blocks alone are in no hurry"
        feed.note(state_pb2.LedgerEvent(admitted=state_pb2.Admitted(request_id="a")))
        picture.take(await anext(frames))

    assert set(picture.parents) == {1, 2}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
