"""What the demonstration found out; ``--json`` prints it as it stands."""

from dataclasses import dataclass

from rich.table import Table

from penstock_cli.views.amounts import duration


@dataclass(frozen=True, slots=True)
class RunReport:
    """One streamed completion. ``reason`` is why the router chose the worker."""

    request_id: str
    decision_id: str
    worker_id: str
    mode: str
    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_s: float
    tpot_s: float
    total_s: float
    text: str


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The batch. ``answered`` lines are in ``output_path``."""

    batch_id: str
    status: str
    lines: int
    answered: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    output_path: str


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Everything. ``start_s`` is the time until the platform was ready."""

    model: str
    workers: int
    start_s: float
    runs: tuple[RunReport, ...]
    batch: BatchReport
    total_s: float


def run_line(run: RunReport) -> str:
    """The numbers of one run, in a line."""
    return (
        f"TTFT {duration(run.ttft_s)}, TPOT {duration(run.tpot_s)}, "
        f"{run.cached_tokens} of {run.prompt_tokens} prompt tokens from the cache, "
        f"{run.worker_id} ({run.mode}): {run.reason}"
    )


def summary_table(report: DemoReport) -> Table:
    """The runs beside each other, and the batch."""
    table = Table(title="Summary")
    for name in ("", "prompt", "cached", "new tokens", "TTFT", "TPOT", "worker"):
        table.add_column(name, justify="left" if name in {"", "worker"} else "right")
    for number, run in enumerate(report.runs, start=1):
        table.add_row(
            f"run {number}",
            str(run.prompt_tokens),
            str(run.cached_tokens),
            str(run.completion_tokens),
            duration(run.ttft_s),
            duration(run.tpot_s),
            run.worker_id,
        )
    batch = report.batch
    table.add_row(
        f"batch of {batch.lines}",
        str(batch.prompt_tokens),
        str(batch.cached_tokens),
        str(batch.completion_tokens),
        "",
        "",
        f"{batch.answered} answered in {duration(batch.seconds)}",
    )
    return table
