"""Batches for tests: all parts in one process, or the two real processes.

In one process the queue and the clock are moved by the test.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock_batch.batches import Batches, NewBatch
from penstock_batch.metrics import BatchMetrics
from penstock_batch.queue.jobs import Jobs
from penstock_batch.queue.reconciler import Reconciler
from penstock_batch.queue.steward import QueueOptions, Steward
from penstock_batch.running.caller import CallOptions, LineCaller
from penstock_batch.running.finalizer import Finalizer
from penstock_batch.running.plan_job import PlanJob
from penstock_batch.running.pressure import Aimd, Gate
from penstock_batch.running.runner import ShardRunner
from penstock_batch.state.fold import Batch
from penstock_batch.state.steps import Step
from penstock_batch.stores.board import Board
from penstock_batch.stores.files import FileStore, StoredFile
from penstock_batch.stores.objects import Objects
from penstock_batch.stores.store import FactStore
from penstock_core.rpc import server as rpc

TENANT = "acme"
COMPLETIONS = "/v1/completions"
_LEASE_S = 5.0
_STOP_TIMEOUT_S = 20.0


def jsonl(count: int, **body: Any) -> bytes:
    """An input file of ``count`` lines ``line-1``, ``line-2``..., each with a prompt of its own."""
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": COMPLETIONS,
            "body": {"model": "penstock-demo", "prompt": f"prompt {number}", **body},
        }
        for number in range(1, count + 1)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """Bytes as a stream."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


class Clock:
    """Unix time that only the test moves."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Now."""
        return self.now


@dataclass
class ManualQueue:
    """Steps wait here until the test runs them."""

    waiting: list[tuple[str, Step]] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)

    async def send(self, batch_id: str, step: Step, level: int) -> None:
        """Enqueue."""
        self.waiting.append((batch_id, step))
        self.levels.append(level)

    async def backlog(self) -> int:
        """How many wait."""
        return len(self.waiting)


@dataclass
class BatchBench:
    """Every part of the batch service, without Celery."""

    clock: Clock
    queue: ManualQueue
    objects: Objects
    store: FactStore
    files: FileStore
    board: Board
    batches: Batches
    jobs: Jobs
    reconciler: Reconciler

    async def upload(self, data: bytes, tenant: str = TENANT) -> StoredFile:
        """Store an input file."""
        return await self.files.upload(tenant, "input.jsonl", chunks(data), self.clock())

    async def submit(self, data: bytes, tenant: str = TENANT, **wishes: Any) -> Batch:
        """Upload and create."""
        file = await self.upload(data, tenant)
        return await self.batches.create(tenant, NewBatch(file.id, COMPLETIONS, **wishes))

    async def run_next(self) -> Step:
        """Run the step that waits longest."""
        batch_id, step = self.queue.waiting.pop(0)
        if step.shard is not None:
            await self.jobs.run_shard(batch_id, step.shard)
        elif step.name == "plan":
            await self.jobs.plan(batch_id)
        else:
            await self.jobs.finalize(batch_id)
        return step

    async def run_all(self) -> None:
        """Run steps until none waits."""
        while self.queue.waiting:
            await self.run_next()

    async def output(self, batch: Batch) -> list[dict[str, Any]]:
        """Lines of the output file; none if there is no file."""
        return await self._lines(batch.output_file_id)

    async def errors(self, batch: Batch) -> list[dict[str, Any]]:
        """Lines of the error file; none if there is no file."""
        return await self._lines(batch.error_file_id)

    async def _lines(self, file_id: str, tenant: str = TENANT) -> list[dict[str, Any]]:
        if not file_id:
            return []
        return parsed(await self.files.read(tenant, file_id))


def parsed(data: bytes) -> list[dict[str, Any]]:
    """Lines of a JSONL file."""
    return [json.loads(line) for line in data.splitlines()]


@asynccontextmanager
async def batch_bench(
    directory: Path, redis_url: str, router: str, *, shard_lines: int = 8, attempts: int = 2
) -> AsyncIterator[BatchBench]:
    """A bench over a directory and a Redis, whose keys get a prefix of their own."""
    clock, queue = Clock(), ManualQueue()
    objects = Objects.open(f"file://{directory}")
    store, files = FactStore(objects), FileStore(objects, max_bytes=1_000_000)
    metrics = BatchMetrics()
    async with Board(redis_url, f"test{directory}") as board, rpc.channel(router) as channel:
        steward = Steward(store, board, queue, QueueOptions(64, 60.0), clock)
        caller = LineCaller(channel, Gate(Aimd.starting(4, 16)), CallOptions(30.0, attempts))
        jobs = Jobs(
            PlanJob(store, files, shard_lines, clock),
            ShardRunner(store, board, caller, metrics, clock),
            Finalizer(store, files, clock),
            steward,
            board,
            _LEASE_S,
        )
        batches = Batches(store, files, board, steward, clock)
        reconciler = Reconciler(store, steward, metrics, 0.1, clock)
        yield BatchBench(clock, queue, objects, store, files, board, batches, jobs, reconciler)


@dataclass
class BatchProcesses:
    """``serve`` and ``work`` as processes of their own; ``endpoint`` is where ``serve`` listens."""

    endpoint: str
    environment: Mapping[str, str]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, kind: str) -> "subprocess.Popen[bytes]":
        """Start a process of a kind, ``serve`` or ``work``."""
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock_batch", kind],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
        )
        self.running.append(process)
        return process

    def kill(self, processes: Iterable["subprocess.Popen[bytes]"]) -> None:
        """Kill as a power cut would."""
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()

    def stop(self) -> list[int]:
        """End everything politely; the exit statuses."""
        alive = [process for process in self.running if process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGTERM)
        try:
            return [process.wait(_STOP_TIMEOUT_S) for process in alive]
        finally:
            self.kill(alive)


@contextmanager
def batch_processes(
    directory: Path, redis_url: str, router: str, kinds: Sequence[str], **settings: object
) -> Iterator[BatchProcesses]:
    """Processes with short time-outs over a directory and a Redis."""
    values = {
        "listen": f"unix:{directory}/batch.sock",
        "store_url": f"file://{directory}/store",
        "redis_url": redis_url,
        "router": router,
        "shard_lines": 8,
        "visibility_timeout_s": 2,
        "restore_interval_s": 1,
        "lease_s": 1.5,
        "requeue_after_s": 2,
        "reconcile_interval_s": 0.2,
        "grace_s": 1,
        **settings,
    }
    environment = {f"PENSTOCK_BATCH_{k.upper()}": str(v) for k, v in values.items()}
    processes = BatchProcesses(str(values["listen"]), environment)
    try:
        for kind in kinds:
            processes.start(kind)
        yield processes
    finally:
        processes.kill(processes.running)
