"""What `penstock bench engine` measures, on an engine whose outputs are known."""

import io
from dataclasses import replace

from rich.console import Console

from penstock_cli.bench.engine import EngineBench, EngineLoad, MachineRow, SharedLoad, measure
from penstock_cli.views.benches import engine_view
from penstock_testing.engines.fake import FakeEngine

SHARED = SharedLoad(requests=4, shared_tokens=64, own_tokens=8, new_tokens=3)
LOAD = EngineLoad((1, 3), prompt_tokens=100, new_tokens=5, repeats=2, shared=SHARED)


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
    assert told == [
        "warming up",
        "batch of 1",
        "batch of 3",
        "prefix cache",
        "long prompt",
        "shared prefix",
    ]
    # A warm-up as of batch 1, then both sizes, then each cache prompt twice, a long one, and those
    # that share, apart and together, all of it repeated.
    assert len(engine.requests) == LOAD.repeats * (1 + 1 + 3 + 2 + 1 + 2 * 4)
    assert all(row.ttft_s > 0 and row.decode_tokens_per_s > 0 for row in bench.batches)


async def test_prompts_differ_except_where_the_cache_is_measured() -> None:
    bench, engine, _ = await measured()

    prompts = [tuple(request.prompt) for request in engine.requests]
    assert len(set(prompts)) == len(prompts) - LOAD.repeats
    assert bench.cache.cached_tokens == 96
    assert [len(prompt) for prompt in prompts[:14]] == [100] * 14


async def test_requests_share_their_beginning_with_the_cache_on_and_off() -> None:
    bench, engine, _ = await measured()

    apart, together = engine.requests[-8:-4], engine.requests[-4:]
    for group in (apart, together):
        assert len({tuple(request.prompt[:64]) for request in group}) == 1
        assert len({tuple(request.prompt[64:]) for request in group}) == 4
    assert len({request.chain_start for request in apart}) == 4
    assert len({request.chain_start for request in together}) == 1
    assert bench.shared.shared_tokens == 64


async def test_the_long_prompt_keeps_within_the_context() -> None:
    bench, engine, _ = await measured()

    assert bench.prefill.prompt_tokens == min(2048, engine.info().max_context_tokens - 1)
    assert bench.prefill.tokens_per_s > 0


async def test_same_seed_asks_the_same() -> None:
    (_, first, _), (_, second, _) = await measured(), await measured()

    assert [r.prompt for r in first.requests] == [r.prompt for r in second.requests]


async def test_table_names_the_engine_and_the_saving() -> None:
    bench, _, _ = await measured()
    console = Console(file=io.StringIO(), width=200, color_system=None)
    machine = MachineRow("bfloat16", 20.0, 400.0, 1000, 0.5, 0.25)
    console.print(engine_view(replace(bench, machine=machine)))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "96 of 100 prompt tokens cached" in text
    assert "times sooner" in text
    assert "4 requests of 64 shared" in text
    assert "50% of 20 GB/s" in text
    assert "25% of 400 GFLOP/s" in text
