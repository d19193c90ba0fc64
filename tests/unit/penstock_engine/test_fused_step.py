"""The fused step against PyTorch's own operators, for every shape it serves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock_engine.api import EngineRequest
from penstock_engine.native.execution.runner import Runner
from penstock_engine.native.loading import draw_up, load_runner
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Request, Sample
from penstock_engine.native.settings import NativeSettings
from penstock_testing.engines.checkpoints import write_checkpoint
from penstock_testing.engines.kernel import kernel_or_lack

pytestmark = pytest.mark.skipif(
    isinstance(kernel_or_lack(), str), reason="no compiler or no AVX2 here"
)

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
LENGTH = 70
TOKENS = [(5 * i * i + 3 * i + 1) % 250 for i in range(LENGTH)]
EXACT = 2e-4


def make(model: Path, kernel: str, dtype: str = "float32", **changes: Any) -> Runner:
    settings = NativeSettings(
        model, dtype=dtype, device="cpu", kernel=kernel, kv_blocks=200, **{"threads": 2, **changes}
    )
    return load_runner(draw_up(settings))


def sequence(first_page: int, block: int, tokens: Sequence[int] = TOKENS) -> Sample:
    """Pages scattered over the cache, so that a table read wrongly shows."""
    sample = Request(EngineRequest("r", list(tokens), 9), 0, 0.0).samples[0]
    count = -(-len(tokens) // block)
    sample.pages = [(first_page + 7 * i) % 200 for i in range(count)]
    return sample


def compute(runner: Runner, *chunks: Chunk) -> Tensor:
    with torch.inference_mode():
        return runner.logits(StepPlan(chunks))


def whole(runner: Runner, block: int, tokens: Sequence[int] = TOKENS) -> Tensor:
    return compute(runner, Chunk(sequence(3, block, tokens), 0, len(tokens), len(tokens)))


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp(request.param), SHAPES[request.param])


@pytest.mark.parametrize("block", [4, 32])
def test_float32_equals_the_eager_decoder(model: Path, block: int) -> None:
    eager = make(model, "eager", block_tokens=block)
    fused = make(model, "fused", block_tokens=block)

    torch.testing.assert_close(whole(fused, block), whole(eager, block), atol=EXACT, rtol=EXACT)


def test_hidden_states_are_those_behind_the_logits(model: Path) -> None:
    fused, eager = make(model, "fused", block_tokens=8), make(model, "eager", block_tokens=8)
    plan = StepPlan((Chunk(sequence(3, 8), 0, LENGTH, 5), Chunk(sequence(90, 8), 0, 9, 1)))

    found = fused.hidden(plan)

    assert found.shape[0] == 6
    torch.testing.assert_close(found, eager.hidden(plan), atol=EXACT, rtol=EXACT)


def off_by(logits: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference, as a share of the logits' spread."""
    return float((logits - reference).std() / reference.std())


def test_bfloat16_stays_close_to_float32(model: Path) -> None:
    assert (
        off_by(whole(make(model, "fused", "bfloat16"), 32), whole(make(model, "eager"), 32)) < 0.03
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_stays_close_to_eager_int8(model: Path, dtype: str) -> None:
    """The eager decoder quantises weights alone; the kernel also what they are multiplied with."""
    fused = make(model, "fused", dtype, quantization="int8")
    eager = make(model, "eager", quantization="int8")

    assert off_by(whole(fused, 32), whole(eager, 32)) < 0.06


def test_int8_stays_close_to_whole_weights(model: Path) -> None:
    for kernel in ("fused", "eager"):
        int8 = whole(make(model, kernel, quantization="int8"), 32)

        assert 1e-4 < off_by(int8, whole(make(model, kernel), 32)) < 0.06


VARIANTS = [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8"), ("float32", "int8")]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("dtype", "quantization"), VARIANTS)
def test_a_row_is_the_same_in_any_company(
    model: Path, dtype: str, quantization: str, threads: int
) -> None:
    """Bit for bit: alone, among others, as a draft, and however its prompt was cut."""
    runner = make(model, "fused", dtype, quantization=quantization, threads=threads, block_tokens=8)
    expected = whole(runner, 8)
    others = [sequence(40 + 11 * i, 8, TOKENS[i:]) for i in range(12)]
    for other in others:
        compute(runner, Chunk(other, 0, 40))
    for cuts in ([1] * LENGTH, [33, 1, 6, 30], [7, 32, 31]):
        sample, start, parts = sequence(3, 8), 0, []
        for at, count in enumerate(cuts):
            company = [Chunk(other, 40, 1, 1) for other in others[: at % 13]]
            logits = compute(runner, *company, Chunk(sample, start, count, count))
            parts.append(logits[len(company) :])
            start += count
        assert torch.equal(torch.cat(parts), expected)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runner, Tensor]:
    """A kernel and the logits of many short sequences as the eager decoder gives them."""
    path = write_checkpoint(tmp_path_factory.mktemp("tiny"))
    eager = make(path, "eager", block_tokens=4)
    wanted = [compute(eager, Chunk(sample, 0, len(sample.tokens), 1)) for sample in short_ones()]
    return make(path, "fused", block_tokens=4), torch.cat(wanted)


def short_ones() -> list[Sample]:
    """Lengths around the page, each on pages of its own."""
    samples = [sequence(0, 4, TOKENS[i : i + 6 + i % 7]) for i in range(33)]
    for i, sample in enumerate(samples):
        sample.pages = [(6 * i + 5 * j) % 198 for j in range(3)]
    return samples


@pytest.mark.parametrize("rows", range(1, 34))
def test_any_number_of_sequences_decodes_at_once(tiny: tuple[Runner, Tensor], rows: int) -> None:
    fused, wanted = tiny
    samples = short_ones()[:rows]
    compute(fused, *(Chunk(sample, 0, len(sample.tokens) - 1) for sample in samples))

    logits = compute(fused, *(Chunk(sample, len(sample.tokens) - 1, 1, 1) for sample in samples))

    torch.testing.assert_close(logits, wanted[:rows], atol=EXACT, rtol=EXACT)
