"""Vectors equal transformers' pooled hidden states, alone and in company, beside generations too."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock_core.errors import EngineFailed, InvalidRequest, NotSupported, PromptTooLong
from penstock_engine.api import EmbedRequest, EngineRequest, Pooling, Sampling, TokenOut
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.execution.runner import Runner
from penstock_engine.native.settings import NativeSettings
from penstock_models import DEMO
from penstock_testing.engines.checkpoints import write_checkpoint

# transformers warns about its own future; that is none of our business here.
pytestmark = pytest.mark.filterwarnings("ignore")

QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16}
TEXTS = [[(7 * i + n) % 250 for i in range(n)] for n in (1, 3, 40, 200, 17, 64)]


@pytest.fixture(scope="module", params=["demo", "llama", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "demo":
        return DEMO
    changes = QWEN3 if request.param == "qwen3" else {}
    return write_checkpoint(tmp_path_factory.mktemp(request.param), changes)


@pytest.fixture(scope="module")
def reference(model: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(model, dtype=torch.float32)


def engine_of(model: Path, **changes: Any) -> NativeEngine:
    fields = {"device": "cpu", "dtype": "float32", "kv_blocks": 32, "threads": 1, **changes}
    return NativeEngine(NativeSettings(model, **fields))


@pytest.fixture(params=["fused", "eager"])
async def engine(request: pytest.FixtureRequest, model: Path) -> AsyncIterator[NativeEngine]:
    try:
        engine = engine_of(model, kernel=request.param, max_batched_tokens=48)
    except NotSupported as error:
        pytest.skip(error.message)
    await engine.start()
    yield engine
    await engine.close()


async def embed(engine: NativeEngine, texts: Sequence[Sequence[int]], **changes: Any) -> np.ndarray:
    async with asyncio.timeout(60):
        return np.array((await engine.embed(EmbedRequest("e", texts, **changes))).vectors)


def pooled(reference: Any, text: Sequence[int], pooling: Pooling) -> np.ndarray:
    with torch.inference_mode():
        states = reference(torch.tensor([list(text)])).last_hidden_state[0]
    return np.array(states[-1] if pooling is Pooling.LAST else states.mean(0))


@pytest.mark.parametrize("pooling", list(Pooling))
async def test_vectors_are_transformers_pooled_states(
    engine: NativeEngine, reference: Any, pooling: Pooling
) -> None:
    vectors = await embed(engine, TEXTS, pooling=pooling)

    assert vectors.shape == (len(TEXTS), engine.info().embedding_dimensions)
    for text, vector in zip(TEXTS, vectors, strict=True):
        wanted = pooled(reference, text, pooling)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert vector @ wanted / np.linalg.norm(wanted) > 1 - 1e-5


async def test_a_vector_does_not_depend_on_its_neighbours(engine: NativeEngine) -> None:
    together = await embed(engine, TEXTS)
    alone = np.concatenate([await embed(engine, [text]) for text in TEXTS])
    many = await asyncio.gather(*(embed(engine, [text] * 3) for text in TEXTS))

    if "fused" in engine.info().device:
        assert np.array_equal(together, alone)
        assert all(
            np.array_equal(a, b) for a, three in zip(alone, many, strict=True) for b in three
        )
    np.testing.assert_allclose(together, alone, atol=1e-5)


async def test_texts_are_read_between_the_steps_of_a_generation(engine: NativeEngine) -> None:
    ask = EngineRequest("g", TEXTS[4], 120, Sampling(temperature=0))
    alone = [out async for out in engine.generate(ask) if isinstance(out, TokenOut)]
    vectors = await embed(engine, TEXTS)

    during: list[TokenOut] = []
    reading = None
    async for out in engine.generate(ask):
        if isinstance(out, TokenOut):
            during.append(out)
            reading = reading or asyncio.create_task(embed(engine, TEXTS))
    assert reading is not None

    assert [t for out in during for t in out.token_ids] == [t for o in alone for t in o.token_ids]
    np.testing.assert_allclose(await reading, vectors, atol=1e-5)


async def test_a_cancelled_request_frees_what_it_held(engine: NativeEngine) -> None:
    task = asyncio.create_task(embed(engine, [[1] * 300] * 50))
    await asyncio.sleep(0)  # it is submitted now
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    longest = [[1] * engine.info().max_embed_tokens]
    assert len(await embed(engine, longest)) == 1
    assert engine.state().used_blocks == 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("texts", "changes", "error", "said"),
    [
        ([], {}, InvalidRequest, "nothing to embed"),
        ([[1], []], {}, InvalidRequest, "empty"),
        ([[1], [2] * 65], {}, PromptTooLong, "65 tokens, and at most 64"),
        ([[1, 257]], {}, InvalidRequest, "vocabulary of 257"),
        ([[1]], {"dimensions": 49}, InvalidRequest, "dimensions is 49; this model has 48"),
        ([[1]], {"dimensions": 0}, InvalidRequest, "dimensions is 0"),
    ],
)
async def test_what_cannot_be_embedded_is_refused(
    tiny: Path, texts: Any, changes: Any, error: type[Exception], said: str
) -> None:
    engine = engine_of(tiny, max_embed_tokens=64)
    await engine.start()
    try:
        with pytest.raises(error, match=said):
            await embed(engine, texts, **changes)
    finally:
        await engine.close()


async def test_an_engine_told_to_embed_nothing_says_so(tiny: Path) -> None:
    engine = engine_of(tiny, max_embed_tokens=0)
    await engine.start()
    try:
        assert engine.info().embedding_dimensions == 0
        with pytest.raises(NotSupported, match="no embeddings"):
            await embed(engine, [[1]])
    finally:
        await engine.close()


async def test_a_failing_step_fails_those_who_wait_for_vectors(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(self: Runner, plan: object) -> None:
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr(Runner, "hidden", explode)
    engine = engine_of(tiny)
    await engine.start()
    with pytest.raises(EngineFailed, match="on fire"):
        await embed(engine, [[1]])
    await engine.close()


async def test_the_pooling_that_the_model_names_is_its_own(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    engine = engine_of(model)
    await engine.start()
    try:
        own, mean, last = [
            await embed(engine, [TEXTS[2]], pooling=pooling)
            for pooling in (None, Pooling.MEAN, Pooling.LAST)
        ]
    finally:
        await engine.close()

    assert np.array_equal(own, mean)
    assert not np.allclose(own, last)


async def test_a_checkpoint_without_a_head_is_read(tmp_path: Path) -> None:
    """As makers of embedding models publish them: the decoder alone, without its prefix."""
    whole = write_checkpoint(tmp_path / "whole", {"tie_word_embeddings": True})
    bare = write_checkpoint(tmp_path / "bare", {"tie_word_embeddings": True})
    tensors = load_file(bare / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, bare / "model.safetensors", {"format": "pt"})

    vectors = []
    for path in (whole, bare):
        engine = engine_of(path)
        await engine.start()
        vectors.append(await embed(engine, TEXTS))
        await engine.close()

    assert np.array_equal(vectors[0], vectors[1])
