"""Tables of measurements."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from penstock_cli.bench.engine import EngineBench, MachineRow
from penstock_cli.bench.index import IndexBench
from penstock_cli.bench.speculation import SpeculationRow
from penstock_cli.views.amounts import duration


def engine_view(bench: EngineBench) -> RenderableType:
    """Batches beside each other, then the cache."""
    load = bench.load
    table = Table(
        title=f"{bench.engine} on {bench.device}: prompts of {load.prompt_tokens} tokens, "
        f"{load.new_tokens} new, medians of {load.repeats}"
    )
    for name in ("batch", "TTFT", "TPOT", "tokens/s", "prefill tokens/s", "reads", "multiplies"):
        table.add_column(name, justify="right")
    uses = {use.batch: use for use in bench.machine.batches} if bench.machine else {}
    for row in bench.batches:
        use = uses.get(row.batch)
        table.add_row(
            str(row.batch),
            duration(row.ttft_s),
            duration(row.tpot_s),
            f"{row.decode_tokens_per_s:.0f}",
            f"{row.prefill_tokens_per_s:.0f}",
            f"{use.read_fraction:.0%}" if use else "",
            f"{use.matmul_fraction:.0%}" if use else "",
        )
    cache, prefill, shared = bench.cache, bench.prefill, bench.shared
    models = dict.fromkeys(row.model for row in bench.speculation)
    speculation = [
        _speculation_table(model, [row for row in bench.speculation if row.model == model])
        for model in models
    ]
    return Group(
        table,
        *speculation,
        f"prefix cache: {cache.cached_tokens} of {cache.prompt_tokens} prompt tokens cached, TTFT "
        f"{duration(cache.ttft_off_s)} without, {duration(cache.ttft_on_s)} with: "
        f"{cache.speedup:.1f} times sooner",
        f"long prompt: {prefill.prompt_tokens} tokens in {duration(prefill.ttft_s)}, "
        f"{prefill.tokens_per_s:.0f} tokens/s",
        f"shared prefix: {shared.requests} requests of {shared.shared_tokens} shared and "
        f"{shared.own_tokens} own tokens, {shared.new_tokens} new: {duration(shared.off_s)} without "
        f"the cache, {duration(shared.on_s)} with: {shared.speedup:.1f} times sooner",
        *([_machine_line(bench.machine)] if bench.machine else []),
    )


def _machine_line(machine: MachineRow) -> str:
    return (
        f"ceilings of this machine, in {machine.dtype}: reading {machine.read_gb_per_s:.0f} GB/s, "
        f"multiplying {machine.matmul_gflops:.0f} GFLOP/s; the long prompt multiplies at "
        f"{machine.prefill_matmul_fraction:.0%}, the shared prefix with the cache at "
        f"{machine.shared_matmul_fraction:.0%}"
    )


def _speculation_table(model: str, rows: Sequence[SpeculationRow]) -> Table:
    table = Table(title=f"speculation on Python code{f', {model}' if model else ''}")
    for name in ("kind", "batch", "temp.", "tokens/s", "speed-up", "by CPU", "drafted", "accepted"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.kind,
            str(row.batch),
            f"{row.temperature:g}",
            f"{row.tokens_per_s:.0f}",
            f"{row.speedup:.2f}",
            f"{row.cpu_speedup:.2f}",
            str(row.drafted_tokens),
            str(row.accepted_tokens),
        )
    return table


def index_view(bench: IndexBench) -> RenderableType:
    """One row for each number of blocks and workers, one column for each operation."""
    hashing = [cell for cell in bench.measurements if cell.workers is None]
    cells = [cell for cell in bench.measurements if cell.workers is not None]
    operations = list(dict.fromkeys(cell.op for cell in cells))
    table = Table(
        title=f"routing index with {bench.load.indexed} other blocks: microseconds, p50/p99 "
        f"of {bench.load.rounds}",
        caption="workers hold a prompt to different depths; decide: hash, match, choose and record",
    )
    for name in ("blocks", "workers", *operations):
        table.add_column(name, justify="right")
    rows: dict[tuple[int, int | None], list[str]] = {}
    for cell in cells:
        times = f"{cell.us_p50:.1f}/{cell.us_p99:.1f}"
        rows.setdefault((cell.blocks, cell.workers), []).append(times)
    for (blocks, workers), columns in rows.items():
        table.add_row(str(blocks), str(workers), *columns)
    speeds = (f"{cell.blocks} blocks {cell.us_p50:.0f}" for cell in hashing)
    memory = bench.bytes_per_block
    return Group(
        table,
        f"hash chain, microseconds: {', '.join(speeds)}",
        "memory: " + ("not measured" if memory is None else f"{memory:.0f} bytes a block"),
    )
