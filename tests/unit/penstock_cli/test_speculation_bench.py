"""What `penstock bench engine` says of speculation, on engines whose outputs are known."""

import io

from rich.console import Console

from penstock_cli.bench.engine import CacheRow, EngineBench, EngineLoad
from penstock_cli.bench.speculation import (
    SpeculationLoad,
    SpeculationRow,
    code_prompts,
    measure_speculation,
)
from penstock_cli.views.benches import engine_view
from penstock_testing.engine import FakeConfig, FakeEngine

LOAD = SpeculationLoad(batches=(1, 3), prompt_tokens=20, new_tokens=5, repeats=2)


async def measured() -> tuple[tuple[SpeculationRow, ...], dict[str, FakeEngine]]:
    engines = {"none": FakeEngine(), "ngram": FakeEngine(FakeConfig(drafts=(9, 4)))}
    prompts = code_prompts(lambda text: list(text.encode("ascii", "ignore")), LOAD)
    rows = await measure_speculation(engines, prompts, LOAD, lambda _: None)
    return rows, engines


async def test_each_kind_gets_the_same_prompts_at_each_batch_size() -> None:
    rows, engines = await measured()

    assert [(row.kind, row.batch) for row in rows] == [
        ("none", 1), ("ngram", 1), ("none", 3), ("ngram", 3),
    ]  # fmt: skip
    asked = [[r.prompt for r in engine.requests] for engine in engines.values()]
    assert asked[0] == asked[1]
    # A warm-up and the repeats, at two batch sizes, over all prompts.
    assert len(asked[0]) == (1 + LOAD.repeats) * 2 * 8


async def test_speedups_are_over_no_speculation_and_drafts_are_counted() -> None:
    rows, _ = await measured()

    assert [row.speedup for row in rows if row.kind == "none"] == [1.0, 1.0]
    assert all(row.speedup > 0 for row in rows)
    assert [(row.drafted_tokens, row.accepted_tokens) for row in rows] == [
        (0, 0), (72, 32), (0, 0), (72, 32),
    ]  # fmt: skip


def test_prompts_are_cut_from_all_over_the_code() -> None:
    prompts = code_prompts(lambda text: list(text.encode("ascii", "ignore")), LOAD)

    assert {len(prompt) for prompt in prompts} == {20}
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts) == 8


def test_table_shows_the_gain() -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    row = SpeculationRow("ngram", 16, 1234.4, 1.75, 90, 60)
    cache = CacheRow(1, 1, 1.0, 1.0)
    console.print(engine_view(EngineBench("e", "cpu", EngineLoad(), (), cache, (row,))))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(part in text for part in ("ngram", "16", "1234", "1.75", "90", "60"))
