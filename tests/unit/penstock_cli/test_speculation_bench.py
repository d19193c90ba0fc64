"""What `penstock bench engine` says of speculation, on engines whose outputs are known."""

import io

from rich.console import Console

from penstock_cli.bench.engine import CacheRow, EngineBench, EngineLoad, PrefillRow, SharedRow
from penstock_cli.bench.speculation import (
    SpeculationLoad,
    SpeculationRow,
    code_prompts,
    measure_speculation,
)
from penstock_cli.views.benches import engine_view
from penstock_testing.engines.fake import FakeConfig, FakeEngine

LOAD = SpeculationLoad((1, 3), (0.0, 0.8), prompt_tokens=20, new_tokens=5, repeats=2)


async def measured() -> tuple[tuple[SpeculationRow, ...], dict[str, FakeEngine]]:
    engines = {"none": FakeEngine(), "ngram": FakeEngine(FakeConfig(drafts=(9, 4)))}
    prompts = code_prompts(lambda text: list(text.encode("ascii", "ignore")), LOAD)
    rows = await measure_speculation(engines, prompts, LOAD, lambda _: None)
    return rows, engines


async def test_each_kind_gets_the_same_prompts_at_each_batch_size() -> None:
    rows, engines = await measured()

    assert [(row.kind, row.batch, row.temperature) for row in rows] == [
        (kind, batch, temperature)
        for batch in (1, 3)
        for temperature in (0.0, 0.8)
        for kind in ("none", "ngram")
    ]
    asked = [[r.prompt for r in engine.requests] for engine in engines.values()]
    assert asked[0] == asked[1]
    # A warm-up and the repeats, at two batch sizes and temperatures, over all prompts.
    assert len(asked[0]) == (1 + LOAD.repeats) * 2 * 2 * 8
    assert {r.sampling.temperature for r in engines["none"].requests} == {0.0, 0.8}


async def test_speedups_are_over_no_speculation_and_drafts_are_counted() -> None:
    rows, _ = await measured()

    assert [row.speedup for row in rows if row.kind == "none"] == [1.0] * 4
    assert all(row.speedup > 0 for row in rows)
    assert [(row.drafted_tokens, row.accepted_tokens) for row in rows] == [
        (0, 0), (72, 32), (0, 0), (72, 32), (0, 0), (72, 32), (0, 0), (72, 32),
    ]  # fmt: skip


def test_prompts_are_cut_from_all_over_the_code() -> None:
    prompts = code_prompts(lambda text: list(text.encode("ascii", "ignore")), LOAD)

    assert {len(prompt) for prompt in prompts} == {20}
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts) == 8


def test_table_shows_the_gain() -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    row = SpeculationRow("ngram", 16, 0.8, 1234.4, 1.75, 1.5, 90, 60)
    cache, prefill = CacheRow(1, 1, 1.0, 1.0), PrefillRow(9, 1.0, 9.0)
    shared = SharedRow(2, 1, 1, 1, 2.0, 1.0)
    bench = EngineBench("e", "cpu", EngineLoad(), (), cache, prefill, shared, (row,))
    console.print(engine_view(bench))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(part in text for part in ("ngram", "16", "1234", "1.75", "1.50", "0.8", "90", "60"))
