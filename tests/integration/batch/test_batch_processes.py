"""The real processes: serve, Celery's worker, Redis; killed, flushed, restarted, drained."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from redis.asyncio import Redis

from penstock.batch.v1 import batch_pb2, batch_service_pb2_grpc
from penstock.batch.v1 import batch_service_pb2 as pb
from penstock.inference.v1 import generate_pb2
from penstock_core.rpc import server as rpc
from penstock_core.security.auth import KeyRing, key_file
from penstock_testing.processes.redis import RedisServer
from penstock_testing.servers.batch import TENANT, BatchProcesses, batch_processes, jsonl, parsed
from penstock_testing.servers.echo_router import EchoRouter, running_echo

pytestmark = pytest.mark.process
DONE = batch_pb2.BATCH_STATUS_COMPLETED
LINES = 64
KEY = "the submitter's key"


class Client:
    """What a submitter does, with a key of its own."""

    def __init__(self, channel: grpc.aio.Channel, key: str = KEY) -> None:
        self.channel = channel
        self.stub = batch_service_pb2_grpc.BatchServiceStub(channel)
        self.key = (("authorization", f"Bearer {key}"),)

    async def upload(self, data: bytes) -> batch_pb2.File:
        description = pb.FileDescription(filename="input.jsonl", purpose="batch")
        parts = [pb.UploadFileRequest(description=description)]
        parts += [pb.UploadFileRequest(data=data[i : i + 999]) for i in range(0, len(data), 999)]
        return (await self.stub.UploadFile(iter(parts), metadata=self.key)).file

    async def submit(self, data: bytes) -> str:
        file = await self.upload(data)
        request = pb.CreateBatchRequest(input_file_id=file.id, endpoint="/v1/completions")
        return (await self.stub.CreateBatch(request, metadata=self.key)).batch.id

    async def watch(self, batch_id: str) -> AsyncIterator[batch_pb2.Batch]:
        request = pb.WatchBatchRequest(batch_id=batch_id)
        async for change in self.stub.WatchBatch(request, metadata=self.key):
            yield change.batch

    async def get(self, batch_id: str) -> batch_pb2.Batch:
        request = pb.GetBatchRequest(batch_id=batch_id)
        return (await self.stub.GetBatch(request, metadata=self.key, wait_for_ready=True)).batch

    async def ended(self, batch_id: str) -> batch_pb2.Batch:
        """Poll, since this must outlive a restart of the server."""
        while True:
            batch = await self.get(batch_id)
            if batch.status >= DONE and batch.status != batch_pb2.BATCH_STATUS_CANCELLING:
                return batch
            await asyncio.sleep(0.05)

    async def lines(self, file_id: str) -> list[dict[str, object]]:
        request = pb.DownloadFileRequest(file_id=file_id)
        call = self.stub.DownloadFile(request, metadata=self.key)
        return parsed(b"".join([part.data async for part in call]))


@asynccontextmanager
async def cluster(
    router: EchoRouter, *kinds: str, **settings: object
) -> AsyncIterator[tuple[BatchProcesses, Client, RedisServer]]:
    with TemporaryDirectory(prefix="penstock-") as name, RedisServer(Path(name)) as redis:
        directory = Path(name)
        keys = directory / "keys.json"
        keys.write_text(
            key_file([(KEY, TENANT, False), ("rival", "rival", False), ("batch", "batch", True)])
        )
        settings = {"keys_file": keys, "service_key": "batch", **settings}
        async with running_echo(router, await asyncio.to_thread(KeyRing.load, keys)) as address:
            with batch_processes(directory, redis.url, address, kinds, **settings) as processes:
                async with rpc.channel(processes.endpoint) as channel, asyncio.timeout(50):
                    await channel.channel_ready()
                    yield processes, Client(channel), redis


async def check_whole(client: Client, batch: batch_pb2.Batch) -> None:
    """Every line is answered, exactly once, by its own answer."""
    assert batch.status == DONE
    assert (batch.counts.total, batch.counts.completed, batch.counts.failed) == (LINES, LINES, 0)
    output = await client.lines(batch.output_file_id)
    assert Counter(str(line["custom_id"]) for line in output) == Counter(
        f"line-{n}" for n in range(1, LINES + 1)
    )
    for number, line in enumerate(output, 1):
        assert json.dumps(line["response"]).count(f'"text": "echo prompt {number}"') == 1


class HoldsAfter:
    """Answers some lines, then none until told to go on."""

    def __init__(self, lines: int) -> None:
        self._left = lines
        self.go_on = asyncio.Event()

    async def __call__(self, request: generate_pb2.GenerateRequest) -> None:
        self._left -= 1
        if self._left < 0:
            await self.go_on.wait()


async def test_a_batch_runs_from_upload_to_results(router: EchoRouter) -> None:
    async with cluster(router, "serve", "work") as (processes, client, _):
        batch_id = await client.submit(jsonl(LINES))
        seen = [batch async for batch in client.watch(batch_id)]
        order = [batch.status for batch in seen]
        assert order == sorted(order)
        await check_whole(client, seen[-1])
        request = pb.StreamResultsRequest(batch_id=batch_id)
        call = client.stub.StreamResults(request, metadata=client.key)
        results = [result async for result in call]
        assert sorted(result.line for result in results) == list(range(1, LINES + 1))
        assert router.tenants == {TENANT}
        for key, status in (
            ("rival", grpc.StatusCode.NOT_FOUND),
            ("wrong", grpc.StatusCode.UNAUTHENTICATED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await Client(client.channel, key).get(batch_id)
            assert caught.value.code() is status
        assert await asyncio.to_thread(processes.stop) == [0, 0]


async def test_a_killed_worker_costs_no_line_and_doubles_none(router: EchoRouter) -> None:
    async with cluster(router, "serve") as (processes, client, _):
        victim = processes.start("work")
        router.before = hold = HoldsAfter(20)
        batch_id = await client.submit(jsonl(LINES))
        await router.until(lambda r: r.answers == 20 and sum(r.calls.values()) > 20)
        processes.kill([victim])
        hold.go_on.set()
        processes.start("work")
        await check_whole(client, await client.ended(batch_id))
        assert max(router.calls.values()) <= 2


async def test_losing_redis_and_every_process_at_once_costs_no_line(router: EchoRouter) -> None:
    async with cluster(router, "serve", "work") as (processes, client, redis):
        router.before = hold = HoldsAfter(20)
        batch_id = await client.submit(jsonl(LINES))
        await router.until(lambda r: r.answers == 20 and sum(r.calls.values()) > 20)
        processes.kill(processes.running)
        async with Redis.from_url(redis.url) as redis_client:
            await redis_client.flushall()
        hold.go_on.set()
        for kind in ("serve", "work"):
            processes.start(kind)
        await check_whole(client, await client.ended(batch_id))


async def test_flushing_redis_under_running_processes_costs_no_line(router: EchoRouter) -> None:
    async with cluster(router, "serve", "work") as (_, client, redis):
        router.before = hold = HoldsAfter(20)
        batch_id = await client.submit(jsonl(LINES))
        await router.until(lambda r: r.answers == 20 and sum(r.calls.values()) > 20)
        async with Redis.from_url(redis.url) as redis_client:
            await redis_client.flushall()
        hold.go_on.set()
        await check_whole(client, await client.ended(batch_id))


async def test_a_restart_of_redis_without_its_data_costs_no_line(router: EchoRouter) -> None:
    async with cluster(router, "serve", "work") as (_, client, redis):
        router.before = hold = HoldsAfter(20)
        batch_id = await client.submit(jsonl(LINES))
        await router.until(lambda r: r.answers == 20 and sum(r.calls.values()) > 20)
        redis.stop()
        assert (await client.get(batch_id)).status == batch_pb2.BATCH_STATUS_IN_PROGRESS
        redis.start()
        hold.go_on.set()
        await check_whole(client, await client.ended(batch_id))


async def test_a_worker_told_to_end_gives_its_shards_to_another(router: EchoRouter) -> None:
    async with cluster(router, "serve", grace_s=0.2) as (processes, client, _):
        leaving = processes.start("work")
        router.before = hold = HoldsAfter(4)
        batch_id = await client.submit(jsonl(LINES))
        await router.until(lambda r: r.answers == 4 and sum(r.calls.values()) > 4)
        leaving.terminate()
        assert await asyncio.to_thread(leaving.wait, 15) == 0
        hold.go_on.set()
        processes.start("work")
        await check_whole(client, await client.ended(batch_id))


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--help"], 0), ([], 2), (["dance"], 2), (["serve"], 2)]
)
def test_the_command_line_is_strict(arguments: list[str], status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock_batch", *arguments],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == status
    assert ("PENSTOCK_BATCH_" if arguments in (["--help"], ["serve"]) else "usage") in (
        done.stdout + done.stderr
    )
