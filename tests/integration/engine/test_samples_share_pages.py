"""n samples hold their prompt once: the pages in use are counted while they run."""

from pathlib import Path

import pytest

from penstock_engine.api import EngineRequest, RequestDone, Sampling, TokenOut
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_testing.engines.checkpoints import write_checkpoint

BLOCK, SAMPLES, NEW = 8, 8, 10
PROMPT = [(7 * i + 3) % 250 for i in range(20 * BLOCK + 3)]  # twenty whole pages and a part
# The part is copied for each sample but the last, and 13 tokens take one page more.
MOST = 20 + SAMPLES * 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("samples"))


async def draw(model: Path, n: int, pages: int) -> tuple[dict[int, list[int]], int, RequestDone]:
    settings = NativeSettings(
        model, device="cpu", threads=1, kv_blocks=pages, block_tokens=BLOCK, max_batched_tokens=64
    )
    engine = NativeEngine(settings)
    await engine.start()
    request = EngineRequest("r", PROMPT, NEW, Sampling(temperature=0.9, seed=5), n=n)
    tokens: dict[int, list[int]] = {}
    used, done = 0, None
    async for out in engine.generate(request):
        used = max(used, engine.state().used_blocks)
        if isinstance(out, TokenOut):
            tokens.setdefault(out.choice_index, []).extend(out.token_ids)
        if isinstance(out, RequestDone):
            done = out
    assert engine.state().used_blocks == 0
    await engine.close()
    assert done is not None
    return tokens, used, done


async def test_samples_share_their_prompts_pages_and_differ_in_what_they_draw(model: Path) -> None:
    tokens, used, done = await draw(model, SAMPLES, MOST)

    assert 20 + SAMPLES <= used <= MOST
    assert done.preemptions == 0
    assert done.computed_prompt_tokens == len(PROMPT)
    assert len({tuple(each) for each in tokens.values()}) == SAMPLES


async def test_a_sample_is_what_it_would_be_among_fewer(model: Path) -> None:
    many, _, _ = await draw(model, SAMPLES, MOST)
    few, _, _ = await draw(model, 2, MOST)

    assert few == {index: many[index] for index in range(2)}
