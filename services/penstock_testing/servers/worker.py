"""A real worker in this process: gRPC on a port of its own, a fake or any other engine behind it."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.worker.v1 import state_pb2
from penstock_engine.api import Engine
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.engines.models import write_byte_tokenizer
from penstock_text.chat import ChatTemplate
from penstock_text.tokenizer import Tokenizer
from penstock_worker.worker import Options, Text, Worker

DEFAULT_OPTIONS = Options(worker_id="worker-1", models=("fake",))


@dataclass(slots=True)
class RunningWorker:
    """A worker that serves. ``engine`` is what tests steer it by."""

    worker: Worker
    engine: Engine
    is_running: bool = True

    @property
    def info(self) -> state_pb2.WorkerInfo:
        """Who it is."""
        return self.worker.info

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return self.worker.info.endpoint

    async def stop(self, grace_s: float = 0.0) -> None:
        """Drain and stop; stopping twice is fine."""
        if self.is_running:
            self.is_running = False
            await self.worker.close(grace_s)

    async def kill(self) -> None:
        """Stop as a crash would look from outside."""
        if self.is_running:
            self.is_running = False
            await self.worker.kill()


@asynccontextmanager
async def running_worker(
    engine: Engine | None = None,
    *,
    options: Options = DEFAULT_OPTIONS,
    worker_id: str = "",
    lease_secret: bytes = b"",
    registry_url: str = "",
    model: Path | None = None,
) -> AsyncIterator[RunningWorker]:
    """Serve until the context ends.

    Args:
        engine: what decodes; a fresh ``FakeEngine`` if None.
        options: everything else; the three arguments after it are short for fields of it.
        worker_id: unique among the workers of one test.
        lease_secret: makes leases necessary.
        registry_url: Redis to announce at.
        model: directory with the tokenizer; the byte tokenizer's if None.
    """
    chosen = replace(
        options,
        worker_id=worker_id or options.worker_id,
        lease_secret=lease_secret or options.lease_secret,
        registry_url=registry_url or options.registry_url,
    )
    with tempfile.TemporaryDirectory(prefix="penstock-") as directory:
        path = model or write_byte_tokenizer(Path(directory))
        text = Text(Tokenizer.load(path), ChatTemplate.load(path), str(path))
        used = engine or FakeEngine()
        running = RunningWorker(Worker(used, text, chosen), used)
        await running.worker.start()
        try:
            yield running
        finally:
            await running.stop()
