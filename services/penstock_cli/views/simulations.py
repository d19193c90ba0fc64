"""Progress and results of simulations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from penstock_cli.execution import notes
from penstock_cli.views.amounts import duration
from penstock_router.simulate.catalogue import Setup
from penstock_router.simulate.report import Result


@contextmanager
def simulating(policies: Sequence[str], requests: int) -> Iterator[Callable[[str, int], None]]:
    """A bar for each policy, on standard error; gives what to tell the progress to."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=notes, transient=True) as progress:
        bars = {n: progress.add_task(n, total=requests, start=False) for n in policies}

        def tell(policy: str, arrived: int) -> None:
            progress.start_task(bars[policy])
            progress.update(bars[policy], completed=arrived)

        yield tell


def simulation_view(results: Sequence[Result], setup: Setup) -> RenderableType:
    """One row for each policy."""
    model = setup.models[0]
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        title=f"{len(results[0].ttft_s)} requests, {len(setup.models)} workers of "
        f"{model.cache_blocks} blocks of {model.block_tokens} tokens, "
        f"{model.prefill_rate:.0f} prompt tokens/s",
        caption="simulated; TTFT counts from arrival at the router; busy: with prefill",
    )
    table.add_column("policy", no_wrap=True)
    for name in ("hit rate", "TTFT mean", "p50", "p90", "p99", "busy", "req/s"):
        table.add_column(name, justify="right")
    for each in results:
        s = each.summary
        times = (s.ttft_mean_s, s.ttft_p50_s, s.ttft_p90_s, s.ttft_p99_s)
        table.add_row(
            s.policy,
            f"{100 * s.hit_rate:.1f} %",
            *(duration(seconds) for seconds in times),
            f"{100 * s.prefill_utilization:.0f} %",
            f"{s.requests_per_s:.2f}",
        )
    took = ", ".join(f"{r.summary.policy} {r.wall_s:.1f} s" for r in results)
    return Group(table, f"wall time: {took}", *_refusals(results))


def _refusals(results: Sequence[Result]) -> list[str]:
    return [
        f"{r.summary.policy} refused {r.rejected} requests, whose first token would have come late"
        for r in results
        if r.rejected
    ]
