"""What `penstock bench engine` measures, on an engine whose outputs are known."""

import io

from rich.console import Console

from penstock_cli.bench.engine import EngineBench, EngineLoad, measure
from penstock_cli.views.benches import engine_view
from penstock_testing.engine import FakeEngine

LOAD = EngineLoad(batches=(1, 3), prompt_tokens=100, new_tokens=5, repeats=2)


async def measured() -> tuple[EngineBench, FakeEngine, list[str]]:
    told: list[str] = []
    engine = FakeEngine()
    await engine.start()
    try:
        return await measure(engine, LOAD, told.append), engine, told
    finally:
        await engine.close()


async def test_every_batch_size_is_measured_with_as_many_requests_at_once() -> None:
    bench, engine, told = await measured()

    assert [row.batch for row in bench.batches] == [1, 3]
    assert told == ["warming up", "batch of 1", "batch of 3", "prefix cache"]
    # A warm-up as of batch 1, then both sizes, then each cache prompt twice, all of it repeated.
    assert len(engine.requests) == LOAD.repeats * (1 + 1 + 3 + 2)
    assert all(row.ttft_s > 0 and row.decode_tokens_per_s > 0 for row in bench.batches)


async def test_prompts_differ_except_where_the_cache_is_measured() -> None:
    bench, engine, _ = await measured()

    prompts = [tuple(request.prompt) for request in engine.requests]
    assert len(set(prompts)) == len(prompts) - LOAD.repeats
    assert bench.cache.cached_tokens == 96
    assert {len(prompt) for prompt in prompts} == {100}


async def test_same_seed_asks_the_same() -> None:
    (_, first, _), (_, second, _) = await measured(), await measured()

    assert [r.prompt for r in first.requests] == [r.prompt for r in second.requests]


async def test_table_names_the_engine_and_the_saving() -> None:
    bench, _, _ = await measured()
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(engine_view(bench))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "96 of 100 prompt tokens cached" in text
    assert "times sooner" in text
