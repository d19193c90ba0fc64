"""Tables of measurements."""

from rich.console import Group, RenderableType
from rich.table import Table

from penstock_cli.bench.engine import EngineBench
from penstock_cli.bench.index import IndexBench
from penstock_cli.views.amounts import duration


def engine_view(bench: EngineBench) -> RenderableType:
    """Batches beside each other, then the cache."""
    load = bench.load
    table = Table(
        title=f"{bench.engine} on {bench.device}: prompts of {load.prompt_tokens} tokens, "
        f"{load.new_tokens} new, medians of {load.repeats}"
    )
    for name in ("batch", "TTFT", "TPOT", "tokens/s", "prefill tokens/s"):
        table.add_column(name, justify="right")
    for row in bench.batches:
        table.add_row(
            str(row.batch),
            duration(row.ttft_s),
            duration(row.tpot_s),
            f"{row.decode_tokens_per_s:.0f}",
            f"{row.prefill_tokens_per_s:.0f}",
        )
    cache = bench.cache
    return Group(
        table,
        f"prefix cache: {cache.cached_tokens} of {cache.prompt_tokens} prompt tokens cached, TTFT "
        f"{duration(cache.ttft_off_s)} without, {duration(cache.ttft_on_s)} with: "
        f"{cache.speedup:.1f} times sooner",
    )


def index_view(bench: IndexBench) -> RenderableType:
    """One row for each number of blocks and workers."""
    table = Table(
        title=f"routing index, microseconds a prompt, medians of {bench.load.repeats}",
        caption="match: held to a different depth by each worker; one: by a single worker; "
        "cold: by nobody",
    )
    for name in ("blocks", "workers", "hash", "match", "one", "cold", "store", "remove"):
        table.add_column(name, justify="right")
    for row in bench.rows:
        times = (row.hash_us, row.match_us, row.match_single_us, row.match_cold_us)
        table.add_row(
            str(row.blocks),
            str(row.workers),
            *(f"{us:.1f}" for us in (*times, row.store_us, row.remove_us)),
        )
    return Group(table, f"memory: {bench.bytes_per_block:.0f} bytes a block and worker")
