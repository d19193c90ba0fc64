"""Adapted rows: eager against merged weights, fused against eager, and in any company the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock_engine.api import EngineRequest
from penstock_engine.native.execution.runner import Runner
from penstock_engine.native.loading import adapter_shelf, draw_up, load_runner
from penstock_engine.native.lora.reading import read_adapter
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Request, Sample
from penstock_engine.native.settings import NativeSettings
from penstock_testing.engines.adapters import merge_adapter, write_adapter
from penstock_testing.engines.checkpoints import write_checkpoint
from penstock_testing.engines.kernel import kernel_or_lack

HAS_KERNEL = not isinstance(kernel_or_lack(), str)
fused_only = pytest.mark.skipif(not HAS_KERNEL, reason="no compiler or no AVX2 here")
KERNELS = ["eager", pytest.param("fused", marks=fused_only)]

QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
SHAPES: dict[str, dict[str, Any]] = {
    "odd-widths": {"hidden_size": 52, "intermediate_size": 100, "head_dim": 14},
    "one-kv-head": {"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 32},
    "no-grouping": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 64},
    "biased-tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "head_dim": 80},
    "qwen3": {**QWEN3, "head_dim": 128, "hidden_size": 192},
    "wide-heads": {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1},
}
ADAPTERS: Mapping[str, dict[str, Any]] = {
    "all": {"rank": 4},
    "large": {"rank": 24, "seed": 2},
    "keys": {"rank": 3, "modules": ["k_proj"], "seed": 3},
    "attention": {"rank": 17, "modules": ["q_proj", "v_proj"], "seed": 4},
    "outputs": {"rank": 1, "modules": ["o_proj", "up_proj"], "seed": 5},
}
LENGTH = 70
BLOCK = 8
TOKENS = [(5 * i * i + 3 * i + 1) % 250 for i in range(LENGTH)]
EXACT = 2e-4


@dataclass(frozen=True, slots=True)
class Folders:
    """A checkpoint, and adapters of it by name."""

    model: Path
    adapters: Path


@pytest.fixture(scope="module", params=SHAPES)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    path = tmp_path_factory.mktemp(request.param)
    model = write_checkpoint(path / "model", SHAPES[request.param])
    for name, how in ADAPTERS.items():
        write_adapter(path / "adapters" / name, model, **how)
    return Folders(model, path / "adapters")


def make(folders: Folders, kernel: str, dtype: str = "float32", **changes: Any) -> Runner:
    values: dict[str, Any] = {"dtype": dtype, "kernel": kernel, "threads": 2} | changes
    plan = draw_up(
        NativeSettings(folders.model, device="cpu", kv_blocks=200, block_tokens=BLOCK, **values)
    )
    shelf = adapter_shelf(plan)
    for name in ADAPTERS:
        shelf.put(name, read_adapter(folders.adapters / name, plan.config, 64))
    return load_runner(plan, None, shelf)


def sequence(first_page: int, adapter: str = "", tokens: Sequence[int] = TOKENS) -> Sample:
    request = EngineRequest("r", list(tokens), 9, adapter=adapter)
    sample = Request(request, 0, 0.0).samples[0]
    sample.pages = [(first_page + 7 * i) % 200 for i in range(-(-len(tokens) // BLOCK))]
    return sample


def compute(runner: Runner, *chunks: Chunk) -> Tensor:
    with torch.inference_mode():
        return runner.logits(StepPlan(chunks))


def whole(runner: Runner, adapter: str = "") -> Tensor:
    return compute(runner, Chunk(sequence(3, adapter), 0, LENGTH, LENGTH))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_computes_what_merged_weights_do(
    folders: Folders, tmp_path: Path, kernel: str, adapter: str
) -> None:
    path = merge_adapter(folders.model, folders.adapters / adapter, tmp_path / "merged")
    merged = make(Folders(path, folders.adapters), "eager")
    runner = make(folders, kernel)
    adapted, base = whole(runner, adapter), whole(runner)

    torch.testing.assert_close(adapted, whole(merged), atol=EXACT, rtol=EXACT)
    assert (adapted - base).abs().max() > 0.1


@fused_only
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_bfloat16_and_int8_stay_close_to_eager_float32(folders: Folders, quantization: str) -> None:
    fused = make(folders, "fused", "bfloat16", quantization=quantization)
    eager = make(folders, "eager", quantization=quantization)
    for adapter in ADAPTERS:
        logits, reference = whole(fused, adapter), whole(eager, adapter)
        assert (logits - reference).std() / reference.std() < 0.06


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_of_several_adapters_share_a_step(folders: Folders, kernel: str) -> None:
    runner = make(folders, kernel)
    names = ["", *ADAPTERS, "", "all", "large"]
    alone = [whole(runner, name) for name in names]
    samples = [sequence(11 + 17 * i, name) for i, name in enumerate(names)]
    # All pages but one sequence's are shared by none, so nothing hides a row that went astray.
    for i, sample in enumerate(samples):
        sample.pages = [(9 * i + j) % 200 for j in range(9)]
    compute(runner, *(Chunk(sample, 0, 60 - i) for i, sample in enumerate(samples)))
    logits = compute(
        runner, *(Chunk(sample, 60 - i, 1 + i % 3, 1) for i, sample in enumerate(samples))
    )

    expected = torch.stack([rows[60 - i + i % 3] for i, rows in enumerate(alone)])
    torch.testing.assert_close(logits, expected, atol=EXACT, rtol=EXACT)


VARIANTS = [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8")]


@fused_only
@pytest.mark.parametrize(("dtype", "quantization"), VARIANTS)
def test_a_row_is_the_same_in_any_company(folders: Folders, dtype: str, quantization: str) -> None:
    """Bit for bit: alone, among rows of its adapter, of others and of none, however cut."""
    runner = make(folders, "fused", dtype, quantization=quantization, threads=3)
    names = ["", *ADAPTERS, "large", "large", "all", ""]
    others = [sequence(40 + 11 * i, name, TOKENS[i:]) for i, name in enumerate(names)]
    for adapter in ("large", ""):
        expected = whole(runner, adapter)
        for other in others:
            compute(runner, Chunk(other, 0, 40))
        for cuts in ([1] * LENGTH, [33, 1, 6, 30], [7, 32, 31]):
            sample, start, parts = sequence(3, adapter), 0, []
            for at, count in enumerate(cuts):
                company = [Chunk(other, 40, 1, 1) for other in others[: at % 11]]
                logits = compute(runner, *company, Chunk(sample, start, count, count))
                parts.append(logits[len(company) :])
                start += count
            assert torch.equal(torch.cat(parts), expected)
