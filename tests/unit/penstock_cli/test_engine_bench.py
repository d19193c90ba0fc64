"""What `penstock bench engine` measures, on an engine whose outputs are known."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from penstock_cli.bench.engine import (
    BatchRow,
    CacheRow,
    EngineBench,
    EngineLoad,
    PrefillRow,
    SharedLoad,
    SharedRow,
    machine_row,
    measure,
)
from penstock_cli.commands.bench import Speculated, speculated
from penstock_cli.views.benches import engine_view
from penstock_engine.native.ceilings import Ceilings
from penstock_models import DEMO, DEMO_DRAFT
from penstock_testing.engines.fake import FakeEngine

SHARED = SharedLoad(requests=4, shared_tokens=64, own_tokens=8, new_tokens=3)
LOAD = EngineLoad((1, 3), prompt_tokens=100, new_tokens=5, repeats=2, shared=SHARED)

CEILINGS = Ceilings("bfloat16", 20e9, 400e9, weights=500, weight_bytes=1000)
KNOWN = EngineBench(
    "native",
    "cpu",
    LOAD,
    # Of 105 tokens a request 5 are new.
    (BatchRow(1, 0.1, 0.001, 40e6 / 21, 1.0), BatchRow(3, 0.1, 0.002, 120e6 / 21, 1.0)),
    CacheRow(100, 96, 0.2, 0.1),
    PrefillRow(2000, 1e-5, 200e6),
    SharedRow(4, 64, 8, 3, 1.0, 108 / 100e6),
)


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
    console.print(engine_view(replace(bench, machine=machine_row(KNOWN, CEILINGS))))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "96 of 100 prompt tokens cached" in text
    assert "times sooner" in text
    assert "4 requests of 64 shared" in text
    assert "reading 20 GB/s, multiplying 400 GFLOP/s" in text
    assert "the long prompt multiplies at 50%" in text
    assert "the shared prefix with the cache at 25%" in text
    assert "30%" in text


def test_every_load_is_set_against_the_machines_ceilings() -> None:
    machine = machine_row(KNOWN, CEILINGS)

    # 1,000 bytes of weights each millisecond of 20 GB/s; 500 weights a token.
    assert [use.batch for use in machine.batches] == [1, 3]
    assert [use.read_fraction for use in machine.batches] == pytest.approx([5e-5, 2.5e-5])
    assert [use.matmul_fraction for use in machine.batches] == pytest.approx([0.1, 0.3])
    assert machine.prefill_matmul_fraction == pytest.approx(0.5)
    assert machine.shared_matmul_fraction == pytest.approx(0.25)


def test_speculation_is_measured_on_the_model_and_where_nothing_drafts_for_it_on_the_demos(
    tmp_path: Path,
) -> None:
    demo = Speculated(DEMO, DEMO_DRAFT)
    bare, own = tmp_path / "bare", tmp_path / "own"
    for folder in (bare, own):
        folder.mkdir()
    (own / "tokenizer.json").write_text("{}")

    assert speculated(DEMO, DEMO_DRAFT) == [demo]
    assert speculated(bare, None) == [demo]
    assert speculated(own, None) == [Speculated(own, None), demo]
    assert speculated(own, bare) == [Speculated(own, bare)]
