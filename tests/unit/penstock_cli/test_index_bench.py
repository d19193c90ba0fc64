"""What `penstock bench index` measures."""

import io

from rich.console import Console

from penstock_cli.bench.index import IndexLoad, measure_index
from penstock_cli.views.benches import index_view

LOAD = IndexLoad(blocks=(4, 64), workers=(1, 3), indexed=640, rounds=2)


def test_every_number_of_blocks_is_measured_with_every_number_of_workers() -> None:
    told: list[str] = []
    bench = measure_index(LOAD, told.append)

    cells = {(cell.blocks, cell.workers) for cell in bench.measurements}
    assert cells == {(4, None), (64, None), (4, 1), (4, 3), (64, 1), (64, 3)}
    assert told == [
        "indexing 640 blocks of 1 workers",
        "4 blocks, 1 workers",
        "64 blocks, 1 workers",
        "indexing 640 blocks of 3 workers",
        "4 blocks, 3 workers",
        "64 blocks, 3 workers",
    ]
    operations = ["match", "store", "remove", "decide"]
    assert [cell.op for cell in bench.measurements] == ["hash"] * 2 + operations * 4
    for cell in bench.measurements:
        assert (cell.bytes_per_block is not None) == (cell.op == "store")
    assert bench.bytes_per_block is not None
    assert 8 < bench.bytes_per_block < 5000


def test_table_has_a_row_for_each_cell_and_a_column_for_each_operation() -> None:
    bench = measure_index(LOAD, lambda _: None)
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(index_view(bench))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    rows = [line for line in text.split("\n") if line.startswith("│")]
    assert len(rows) == 4
    assert all(row.count("/") == 4 for row in rows)
    assert "bytes a block" in text
