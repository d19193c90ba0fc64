"""Greedy output equals Hugging Face transformers' ``generate``, token for token."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock_engine.api import Admitted, EngineRequest, Sampling, TokenOut
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_models import DEMO
from penstock_testing.engines.checkpoints import write_checkpoint

# transformers warns about its own future; that is none of our business here.
pytestmark = pytest.mark.filterwarnings("ignore")

NEW_TOKENS = 24
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": None,
}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied-biased": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama-one-kv-head": {"num_key_value_heads": 1, "head_dim": 20},
    "llama-rope-linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama-rope-llama3": {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0},
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen3-tied": {**QWEN3, "tie_word_embeddings": True},
}


@dataclass(frozen=True, slots=True)
class Reference:
    """transformers on a checkpoint in float32."""

    model: Any

    def generate(self, prompt: Sequence[int], new_tokens: int = NEW_TOKENS) -> list[int]:
        out = self.model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens: list[int] = out[0, len(prompt) :].tolist()
        return tokens


def load_reference(model: Path) -> Reference:
    from transformers import AutoModelForCausalLM

    return Reference(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))


@pytest.fixture(scope="module", params=["demo", *CHECKPOINTS])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Reference]:
    name: str = request.param
    path = DEMO
    if name != "demo":
        shards = 3 if name == "qwen3" else 1
        path = tmp_path_factory.mktemp(name)
        write_checkpoint(path, CHECKPOINTS[name], seed=len(name), shards=shards)
    return path, load_reference(path)


def prompts() -> list[list[int]]:
    """Lengths around the block, the grouped-chunk and the chunk size; two share a long beginning."""
    sizes = (1, 2, 7, 31, 32, 33, 64, 97, 130)
    made = [[(3 + 11 * i + 5 * j * j + j) % 250 for j in range(n)] for i, n in enumerate(sizes)]
    return [*made, [*made[-1][:100], 5, 6, 7]]


async def continue_all(
    engine: NativeEngine, asked: Sequence[Sequence[int]], prefix: str, new_tokens: int = NEW_TOKENS
) -> tuple[list[list[int]], list[int]]:
    """Outputs and cached tokens of requests that run together."""

    async def one(name: str, prompt: Sequence[int]) -> tuple[list[int], int]:
        tokens: list[int] = []
        cached = 0
        request = EngineRequest(name, prompt, new_tokens, Sampling(temperature=0.0))
        async for output in engine.generate(request):
            if isinstance(output, Admitted):
                cached = output.cached_tokens
            elif isinstance(output, TokenOut):
                tokens.extend(output.token_ids)
        return tokens, cached

    done = await asyncio.gather(*(one(f"{prefix}{i}", prompt) for i, prompt in enumerate(asked)))
    return [tokens for tokens, _ in done], [cached for _, cached in done]


@pytest.mark.parametrize("kernel", ["auto", "eager"])
async def test_greedy_output_equals_transformers(
    checkpoint: tuple[Path, Reference], kernel: str
) -> None:
    path, reference = checkpoint
    asked = prompts()
    expected = [reference.generate(prompt) for prompt in asked]
    # 27 tokens a step cut the prompts at places that are no multiple of anything.
    settings = NativeSettings(
        path,
        dtype="float32",
        device="cpu",
        kv_blocks=96,
        max_batch=16,
        max_batched_tokens=27,
        threads=2,
        kernel=kernel,
    )
    engine = NativeEngine(settings)
    await engine.start()
    try:
        together, _ = await continue_all(engine, asked, "together")
        again, cached = await continue_all(engine, asked, "again")
        alone = [(await continue_all(engine, [p], f"alone{i}"))[0][0] for i, p in enumerate(asked)]
    finally:
        await engine.close()

    assert together == expected
    assert again == expected
    assert alone == expected
    assert cached[-2] == 128


async def test_greedy_output_survives_whole_prompt_prefill(
    checkpoint: tuple[Path, Reference],
) -> None:
    path, reference = checkpoint
    asked = prompts()[6:]
    settings = NativeSettings(path, dtype="float32", device="cpu", kv_blocks=96, threads=1)
    engine = NativeEngine(settings)
    await engine.start()
    try:
        cold = [(await continue_all(engine, [p], f"cold{i}"))[0][0] for i, p in enumerate(asked)]
    finally:
        await engine.close()

    assert cold == [reference.generate(prompt) for prompt in asked]


async def test_bfloat16_output_is_the_same_alone_as_in_a_batch(
    checkpoint: tuple[Path, Reference],
) -> None:
    """Only of the fused kernel: PyTorch's bfloat16 products depend on the number of rows."""
    path, _ = checkpoint
    asked = prompts()
    settings = NativeSettings(
        path, dtype="bfloat16", device="cpu", kv_blocks=96, max_batched_tokens=39, threads=2
    )
    engine = NativeEngine(settings)
    if "fused" not in engine.info().device:
        pytest.skip("the kernel cannot be compiled here")
    await engine.start()
    try:
        together, _ = await continue_all(engine, asked, "together")
        alone = [(await continue_all(engine, [p], f"alone{i}"))[0][0] for i, p in enumerate(asked)]
    finally:
        await engine.close()

    assert together == alone


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
async def test_greedy_output_on_a_gpu_equals_transformers(
    checkpoint: tuple[Path, Reference],
) -> None:
    path, reference = checkpoint
    asked = prompts()
    settings = NativeSettings(
        path, device="cuda", dtype="float32", kv_blocks=96, max_batch=16, max_batched_tokens=27
    )
    engine = NativeEngine(settings)
    await engine.start()
    try:
        together, _ = await continue_all(engine, asked, "gpu")
    finally:
        await engine.close()

    assert together == [reference.generate(prompt) for prompt in asked]


async def test_greedy_output_survives_preemption(tmp_path: Path) -> None:
    reference = load_reference(write_checkpoint(tmp_path))
    asked = [[i, *range(20 + i)] for i in range(6)]
    engine = NativeEngine(NativeSettings(tmp_path, device="cpu", kv_blocks=14, threads=1))
    await engine.start()
    try:
        together, _ = await continue_all(engine, asked, "tight", 120)
        preemptions = engine.state().preemptions
    finally:
        await engine.close()

    assert preemptions > 0
    assert together == [reference.generate(prompt, 120) for prompt in asked]
