"""The steps of the demonstration, against a running platform."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from penstock.batch.v1 import batch_pb2
from penstock_cli.demo.report import BatchReport, RunReport, run_line
from penstock_cli.demo.workload import BATCH_LINES, COMPLETIONS_URL, PROMPT, write_batch_file
from penstock_cli.failures import CommandFailed
from penstock_cli.views.batches import BatchProgress, status_name
from penstock_client import AsyncBatchClient, AsyncClient, Delta, GenerateOptions
from penstock_client.results import Collector

_OPTIONS = GenerateOptions(max_tokens=64, temperature=0.0, seed=1, priority="interactive")
_BATCH_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Story:
    """Tells on ``console`` what it does; the files it makes stay in ``output_dir``."""

    client: AsyncClient
    batches: AsyncBatchClient
    console: Console
    output_dir: Path

    async def model(self) -> str:
        """The model that is served."""
        return (await self.client.models())[0].name

    async def stream_twice(self) -> tuple[RunReport, RunReport]:
        """The same prompt twice: the second time its prefix is in a worker's cache.

        Raises:
            CommandFailed: it was not.
        """
        self.console.rule("1. Stream a completion")
        self.console.print(PROMPT, style="dim", markup=False, end="", soft_wrap=True)
        first = await self._stream()
        self.console.rule("2. The same prompt again")
        second = await self._stream()
        if second.cached_tokens == 0:
            raise CommandFailed("the second run found nothing in the cache")
        return first, second

    async def run_batch(self, model: str) -> BatchReport:
        """64 requests through Celery; the answers end up in ``output_dir``.

        Raises:
            CommandFailed: a line was not answered.
        """
        self.console.rule(f"3. A batch of {BATCH_LINES} requests")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        requests = self.output_dir / "batch_input.jsonl"
        write_batch_file(requests, model)
        started_s = time.monotonic()
        uploaded = await self.batches.upload(requests)
        batch = await self.batches.create(uploaded.id, COMPLETIONS_URL)
        batch = await self._followed(batch)
        seconds = time.monotonic() - started_s
        if batch.counts.completed != BATCH_LINES:
            raise CommandFailed(_what_went_wrong(batch))
        answers = self.output_dir / "batch_output.jsonl"
        await self._download(batch.output_file_id, answers)
        self.console.print(f"answers: {answers}", markup=False, soft_wrap=True)
        return _batch_report(batch, seconds, answers)

    async def _stream(self) -> RunReport:
        collector = Collector()
        async with aclosing(self.client.stream(PROMPT, options=_OPTIONS)) as events:
            async for event in events:
                collector.add(event)
                if isinstance(event, Delta):
                    self._write(event.text)
        self.console.print()
        whole = collector.result()
        explanation = await self.client.explain(request_id=whole.request_id)
        run = RunReport(
            request_id=whole.request_id,
            decision_id=explanation.decision.decision_id,
            worker_id=whole.worker_id,
            mode=whole.started.mode,
            reason=explanation.decision.reason,
            prompt_tokens=whole.usage.prompt_tokens,
            cached_tokens=whole.usage.cached_tokens,
            completion_tokens=whole.usage.completion_tokens,
            ttft_s=whole.timing.ttft_s,
            tpot_s=whole.timing.tpot_s,
            total_s=whole.timing.total_s,
            text=whole.text,
        )
        self.console.print(run_line(run), style="cyan", markup=False, soft_wrap=True)
        return run

    def _write(self, text: str) -> None:
        self.console.print(text, style="bold", markup=False, end="", soft_wrap=True)

    async def _followed(self, batch: batch_pb2.Batch) -> batch_pb2.Batch:
        with BatchProgress(self.console) as progress:
            try:
                async with (
                    asyncio.timeout(_BATCH_TIMEOUT_S),
                    aclosing(self.batches.watch(batch.id)) as changes,
                ):
                    async for change in changes:
                        batch = change
                        progress.show(batch)
            except TimeoutError:
                raise CommandFailed(f"no end of the batch: {_what_went_wrong(batch)}") from None
        return batch

    async def _download(self, file_id: str, path: Path) -> None:
        with path.open("wb") as file:
            async with aclosing(self.batches.download(file_id)) as pieces:
                async for piece in pieces:
                    file.write(piece)


def _what_went_wrong(batch: batch_pb2.Batch) -> str:
    counts = batch.counts
    problems = "; ".join(error.message for error in batch.errors)
    return (
        f"the batch is {status_name(batch)} with {counts.completed} of {BATCH_LINES} lines "
        f"answered and {counts.failed} failed{': ' if problems else ''}{problems}"
    )


def _batch_report(batch: batch_pb2.Batch, seconds: float, answers: Path) -> BatchReport:
    return BatchReport(
        batch_id=batch.id,
        status=status_name(batch),
        lines=batch.counts.total,
        answered=batch.counts.completed,
        failed=batch.counts.failed,
        prompt_tokens=batch.usage.prompt_tokens,
        cached_tokens=batch.usage.cached_tokens,
        completion_tokens=batch.usage.completion_tokens,
        seconds=seconds,
        output_path=str(answers.resolve()),
    )
