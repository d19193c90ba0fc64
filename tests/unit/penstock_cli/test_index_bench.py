"""What `penstock bench index` measures."""

import io
from dataclasses import replace

from rich.console import Console

from penstock_cli.bench.index import IndexLoad, measure_index
from penstock_cli.views.benches import index_view

LOAD = IndexLoad(blocks=(4, 64), workers=(1, 3), repeats=2)


def test_every_number_of_blocks_is_measured_with_every_number_of_workers() -> None:
    told: list[str] = []
    bench = measure_index(LOAD, told.append)

    assert [(row.blocks, row.workers) for row in bench.rows] == [(4, 1), (4, 3), (64, 1), (64, 3)]
    assert told[0] == "4 blocks, 1 workers"
    for row in bench.rows:
        times = (row.hash_us, row.match_us, row.match_single_us, row.match_cold_us)
        assert min(*times, row.store_us, row.remove_us) > 0
    assert 50 < bench.bytes_per_block < 5000


def test_more_blocks_take_longer_to_hash_and_to_store() -> None:
    small, large = measure_index(
        replace(LOAD, blocks=(4, 4096), workers=(1,), repeats=3), lambda _: None
    ).rows

    assert large.hash_us > 10 * small.hash_us
    assert large.store_us > 10 * small.store_us


def test_table_has_a_row_for_each_cell() -> None:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(index_view(measure_index(LOAD, lambda _: None)))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "bytes a block" in text
    assert text.count("64 │") == 2
