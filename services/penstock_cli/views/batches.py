"""Batches as lines, tables and a progress bar."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from penstock.batch.v1 import batch_pb2
from penstock_core.cost.pricing import amount_text

ENDED = frozenset(
    {
        batch_pb2.BATCH_STATUS_FAILED,
        batch_pb2.BATCH_STATUS_COMPLETED,
        batch_pb2.BATCH_STATUS_EXPIRED,
        batch_pb2.BATCH_STATUS_CANCELLED,
    }
)


def status_name(batch: batch_pb2.Batch) -> str:
    """The state in OpenAI's words."""
    return batch_pb2.BatchStatus.Name(batch.status).removeprefix("BATCH_STATUS_").lower()


def batch_lines(batch: batch_pb2.Batch) -> Table:
    """Everything about one batch."""
    counts = batch.counts
    table = Table.grid(padding=(0, 2))
    table.add_row("batch", batch.id)
    table.add_row("status", status_name(batch))
    lines = f"{counts.completed} answered, {counts.failed} failed, of {counts.total}"
    table.add_row("lines", lines)
    if batch.deduplicated_lines:
        table.add_row("", f"{batch.deduplicated_lines} by the answer of an identical line")
    table.add_row("shards", f"{batch.shards_done} of {batch.shards}")
    usage = batch.usage
    table.add_row(
        "tokens",
        f"{usage.prompt_tokens} prompt ({usage.cached_tokens} cached), "
        f"{usage.completion_tokens} completion",
    )
    if batch.HasField("cost"):
        table.add_row("cost", amount_text(batch.cost.amount, batch.cost.currency))
    table.add_row("input", batch.input_file_id)
    table.add_row("output", batch.output_file_id or "-")
    table.add_row("errors", batch.error_file_id or "-")
    for error in batch.errors:
        where = f"line {error.line}: " if error.HasField("line") else ""
        table.add_row("problem", f"{where}{error.message} ({error.code})")
    return table


def batches_table(batches: Sequence[batch_pb2.Batch]) -> Table:
    """One row a batch."""
    table = Table()
    for name in ("batch", "status", "endpoint", "answered", "failed", "total", "created"):
        table.add_column(name)
    for batch in batches:
        counts = batch.counts
        table.add_row(
            batch.id,
            status_name(batch),
            batch.endpoint,
            str(counts.completed),
            str(counts.failed),
            str(counts.total),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(batch.times.created)),
        )
    return table


class BatchProgress:
    """A progress bar over a batch's lines."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("lines"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("validating", total=None)

    def __enter__(self) -> Self:
        """Show it."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave its last state on the screen."""
        self._bar.stop()

    def show(self, batch: batch_pb2.Batch) -> None:
        """Show where the batch is."""
        done = batch.counts.completed + batch.counts.failed
        total = batch.counts.total or None
        self._bar.update(self._task, description=status_name(batch), completed=done, total=total)
