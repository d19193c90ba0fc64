"""How a worker is found and how it ends: health, registry, draining, failure, crash."""

import asyncio
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.inference.v1.generate_pb2 import GenerateRequest
from penstock.worker.v1 import state_pb2
from penstock.worker.v1 import worker_service_pb2 as worker_pb2
from penstock_core.errors import Draining, EngineFailed, Evicted, InvalidRequest, Unavailable
from penstock_core.registry import RedisRegistry, WorkerEntry
from penstock_core.rpc import server as rpc
from penstock_core.rpc.status import from_rpc_error
from penstock_testing.callers.calls import Calls, calls_to, read
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.engines.models import write_byte_tokenizer
from penstock_testing.processes.redis import RedisServer
from penstock_testing.servers.worker import DEFAULT_OPTIONS, running_worker
from penstock_text.tokenizer import Tokenizer
from penstock_worker.state.feed import FeedTiming
from penstock_worker.state.registration import Registration
from penstock_worker.worker import Text, Worker

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "penstock.inference.v1.InferenceService"


def ask(max_tokens: int = 8) -> GenerateRequest:
    request = GenerateRequest(model="fake", text="hello " * 10, request_id="r")
    request.stop.max_tokens = max_tokens
    return request


async def health(calls: Calls, service: str = SERVICE) -> int:
    stub = health_pb2_grpc.HealthStub(calls.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def test_draining_refuses_new_requests_and_finishes_the_running_ones() -> None:
    engine = FakeEngine()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        assert await health(calls) == await health(calls, "") == SERVING
        engine.hold()
        running = asyncio.create_task(read(calls.inference.Generate(ask())))
        await engine.until(lambda e: e.state().running == 1)

        draining = asyncio.ensure_future(calls.control.Drain(worker_pb2.DrainRequest(grace_s=60)))
        async with asyncio.timeout(20):
            while await health(calls) == SERVING:
                pass
        with pytest.raises(Draining):
            await calls.generate(ask())
        state = await calls.control.GetWorker(worker_pb2.GetWorkerRequest())
        engine.release()

        assert len((await running).tokens()) == 8
        result = await draining
    assert (result.finished, result.aborted) == (1, 0)
    assert state.load.health == state_pb2.WORKER_HEALTH_DRAINING
    assert list(state.request_ids) == ["r"]


async def test_what_outlasts_the_grace_period_is_handed_on() -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        running = asyncio.create_task(read(calls.inference.Generate(ask())))
        await engine.until(lambda e: e.state().running == 1)

        result = await calls.control.Drain(worker_pb2.DrainRequest(grace_s=0))

        with pytest.raises(Evicted) as caught:
            await running
        assert engine.state().running == 0
    assert (result.finished, result.aborted) == (0, 1)
    assert caught.value.retryable


@pytest.mark.parametrize("grace_s", [-1.0, float("nan"), float("inf")])
async def test_a_grace_period_must_be_a_time(grace_s: float) -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calls.control.Drain(worker_pb2.DrainRequest(grace_s=grace_s))
        assert (await calls.generate(ask())).text()

    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidRequest)
    assert error.field == "grace_s"


async def test_a_stopping_worker_says_so_in_its_feed_and_ends_it() -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        frames = calls.control.WatchState(worker_pb2.WatchStateRequest())
        stream = aiter(frames)
        await anext(stream)

        await worker.stop()

        last = [frame async for frame in stream][-1]
    health_of = [event.progress.load.health for event in last.delta.ledger]
    assert health_of == [state_pb2.WORKER_HEALTH_DRAINING]


async def test_a_crash_breaks_streams_without_a_word() -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        stream = calls.inference.Generate(ask())
        await stream.read()

        await worker.kill()

        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await stream.read()


class Unloadable(FakeEngine):
    """An engine whose model does not fit."""

    async def start(self) -> None:
        raise EngineFailed("no memory")


def worker_of(engine: FakeEngine, tmp_path: Path, listen: str = "127.0.0.1:0") -> Worker:
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))
    options = replace(DEFAULT_OPTIONS, listen=listen, feed=FeedTiming(progress_s=0.005))
    return Worker(engine, Text(tokenizer, None, ""), options)


async def test_an_engine_that_cannot_start_ends_the_process_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="no memory"):
        await worker_of(Unloadable(), tmp_path).run(asyncio.Event())


async def test_a_taken_address_ends_the_process_with_an_error(tmp_path: Path) -> None:
    async with running_worker() as worker:
        with pytest.raises(OSError, match="cannot listen"):
            await worker_of(FakeEngine(), tmp_path, worker.endpoint).run(asyncio.Event())


async def test_a_drained_worker_waits_for_its_signal(tmp_path: Path) -> None:
    stop = asyncio.Event()
    worker = worker_of(FakeEngine(), tmp_path)
    running = asyncio.create_task(worker.run(stop))
    await worker.ready.wait()
    async with calls_to(worker.info.endpoint) as calls:
        await calls.control.Drain(worker_pb2.DrainRequest(grace_s=1))
        assert await health(calls) == NOT_SERVING

    assert not running.done()
    stop.set()
    await asyncio.wait_for(running, 20)


async def test_a_failed_engine_ends_the_process_with_an_error(tmp_path: Path) -> None:
    engine = FakeEngine()
    worker = worker_of(engine, tmp_path)
    running = asyncio.create_task(worker.run(asyncio.Event()))
    await worker.ready.wait()

    engine.fail("the device is gone")

    with pytest.raises(EngineFailed):
        await asyncio.wait_for(running, 20)
    async with rpc.channel(worker.info.endpoint) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="penstock-") as directory:
        server = RedisServer(Path(directory))
        with server:
            yield server


async def announced(url: str, wanted: list[WorkerEntry]) -> bool:
    """Whether the registry says so before long."""
    found: list[WorkerEntry] = []
    async with asyncio.timeout(20), RedisRegistry(url) as registry:
        while found != wanted:
            found = await registry.workers()
    return True


async def test_a_worker_is_announced_while_it_serves(redis: RedisServer) -> None:
    async with running_worker(registry_url=redis.url, worker_id="w7") as worker:
        entry = WorkerEntry(worker.endpoint, "w7")
        assert await announced(redis.url, [entry])

        await worker.stop()

        async with RedisRegistry(redis.url) as registry:
            assert await registry.workers() == []


class Listener(logging.Handler):
    """Lets a test wait for a log line."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self._heard = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._heard.set()

    async def hears(self, part: str, times: int = 1) -> None:
        async with asyncio.timeout(20):
            while sum(part in line for line in self.lines) < times:
                self._heard.clear()
                await self._heard.wait()


@pytest.fixture
def listener() -> Iterator[Listener]:
    handler = Listener()
    log = logging.getLogger("penstock_worker.state.registration")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


class CountingRegistry(RedisRegistry):
    """Lets a test wait for failed announcements."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.failures = asyncio.Semaphore(0)

    async def announce(self, entry: WorkerEntry) -> None:
        try:
            await super().announce(entry)
        except Unavailable:
            self.failures.release()
            raise


async def test_a_registry_that_goes_and_returns_is_told_again(
    redis: RedisServer, listener: Listener
) -> None:
    entry = WorkerEntry("127.0.0.1:1", "w")
    async with CountingRegistry(redis.url) as registry, asyncio.timeout(40):
        running = asyncio.create_task(Registration(registry, entry, renew_s=0.01).run())
        await listener.hears("announced as")
        redis.stop()
        for _ in range(3):
            await registry.failures.acquire()
        redis.start()
        await listener.hears("announced as", times=2)

        assert await registry.workers() == [entry]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    assert sum("cannot announce" in line for line in listener.lines) == 1, "not at each attempt"


async def test_a_worker_serves_and_stops_without_its_registry() -> None:
    nowhere = "unix:///nonexistent/redis.sock"
    async with running_worker(registry_url=nowhere) as worker, calls_to(worker.endpoint) as calls:
        assert (await calls.generate(ask())).text()
