"""Adapters in a running engine: the tokens of merged weights, whatever else is going on."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock_core.blocks import chain_start
from penstock_core.errors import InvalidRequest, NotFound, PromptTooLong
from penstock_engine.api import Admitted, Constraint, EngineRequest, Sampling, TokenOut
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_engine.native.structured.vocabulary import Vocabulary
from penstock_testing.engines.adapters import merge_adapter, write_adapter
from penstock_testing.engines.checkpoints import write_checkpoint
from penstock_testing.engines.models import write_byte_tokenizer
from penstock_text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about its own future

NEW_TOKENS = 24
NAMES = ("", "one", "two", "three")
PROMPTS = [
    [(3 + 11 * i + 5 * j * j + j) % 250 for j in range(n)] for i, n in enumerate((9, 40, 70))
]
GREEDY = Sampling(temperature=0.0)
KERNELS = pytest.mark.parametrize("kernel", ["auto", "eager"])


@dataclass(frozen=True, slots=True)
class Home:
    """A checkpoint, its adapters, and what transformers says of each merged into it."""

    model: Path
    adapters: Path
    expected: dict[str, list[list[int]]]


def said_by_transformers(model: Path) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    reference: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    answers = []
    for prompt in PROMPTS:
        out = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    path = tmp_path_factory.mktemp("adapters")
    model = write_byte_tokenizer(write_checkpoint(path / "model"))
    expected = {"": said_by_transformers(model)}
    for seed, name in enumerate(NAMES[1:]):
        adapter = write_adapter(path / "adapters" / name, model, rank=3 + 7 * seed, seed=seed)
        expected[name] = said_by_transformers(
            merge_adapter(model, adapter, path / f"{name}-merged")
        )
    assert len({str(answers) for answers in expected.values()}) == len(NAMES)
    return Home(model, path / "adapters", expected)


@asynccontextmanager
async def serving(home: Home, **changes: Any) -> AsyncIterator[NativeEngine]:
    values = {"dtype": "float32", "device": "cpu", "kv_blocks": 96, "threads": 1, "block_tokens": 8}
    settings = NativeSettings(home.model, **{**values, "adapters": home.adapters, **changes})
    tokenizer = Tokenizer.load(home.model)
    tokens = [tokenizer.text_bytes(i) for i in range(tokenizer.vocab_size)]
    encode = partial(tokenizer.encode, add_special_tokens=False)
    engine = NativeEngine(settings, Vocabulary(tokens, encode))
    await engine.start()
    try:
        async with asyncio.timeout(120):
            yield engine
    finally:
        await engine.close()


@dataclass(frozen=True, slots=True)
class Said:
    """What a request put out: tokens by sample, and how much of its prompt was cached."""

    tokens: list[list[int]]
    cached: int

    @property
    def first(self) -> list[int]:
        return self.tokens[0]


async def ask(
    engine: NativeEngine, adapter: str, prompt: Sequence[int], name: str = "r", **changes: Any
) -> Said:
    start = chain_start(engine.info().model_revision, "tokenizer", adapter)
    values: dict[str, Any] = {"max_tokens": NEW_TOKENS, "sampling": GREEDY} | changes
    request = EngineRequest(
        f"{name}-{adapter}-{len(prompt)}", prompt, adapter=adapter, chain_start=start, **values
    )
    tokens: list[list[int]] = [[] for _ in range(request.n)]
    cached = 0
    async for output in engine.generate(request):
        if isinstance(output, Admitted):
            cached = output.cached_tokens
        elif isinstance(output, TokenOut):
            tokens[output.choice_index].extend(output.token_ids)
    return Said(tokens, cached)


async def all_at_once(engine: NativeEngine, **changes: Any) -> dict[str, list[list[int]]]:
    """Every prompt with every adapter and without, in one batch as far as there is room."""
    pairs = [(name, prompt) for prompt in PROMPTS for name in NAMES]
    said = await asyncio.gather(*(ask(engine, name, prompt, **changes) for name, prompt in pairs))
    found: dict[str, list[list[int]]] = {name: [] for name in NAMES}
    for (name, _), answer in zip(pairs, said, strict=True):
        found[name].append(answer.first)
    return found


@KERNELS
async def test_a_mixed_batch_says_what_merged_weights_say(home: Home, kernel: str) -> None:
    async with serving(home, kernel=kernel, max_batched_tokens=47) as engine:
        assert engine.info().adapters == ("one", "three", "two")
        assert await all_at_once(engine) == home.expected


@KERNELS
async def test_few_places_and_few_pages_change_nothing(home: Home, kernel: str) -> None:
    """Adapters come and go; sequences are preempted and computed anew."""
    async with serving(home, kernel=kernel, max_adapters=1) as engine:
        assert await all_at_once(engine) == home.expected
        assert await all_at_once(engine) == home.expected
    async with serving(home, kernel=kernel, kv_blocks=14) as engine:
        assert await all_at_once(engine) == home.expected
        assert engine.state().preemptions > 0


@pytest.mark.parametrize("speculation", ["ngram", "draft"])
async def test_drafts_of_the_base_model_change_no_token(home: Home, speculation: str) -> None:
    draft = home.model if speculation == "draft" else None
    async with serving(home, speculation=speculation, draft_model=draft) as engine:
        assert await all_at_once(engine, speculation=True) == home.expected


async def test_adapters_share_no_blocks(home: Home) -> None:
    prompt = PROMPTS[2]
    async with serving(home) as engine:
        first = [(await ask(engine, name, prompt)) for name in NAMES]
        again = [(await ask(engine, name, prompt)) for name in NAMES]

    assert [said.cached for said in first] == [0] * 4
    assert [said.cached for said in again] == [64] * 4
    assert [said.first for said in again] == [home.expected[name][2] for name in NAMES]


async def test_samples_and_constraints_work_as_without(home: Home) -> None:
    warm = Sampling(temperature=1.0, seed=5)
    form = Constraint("regex", "[a-f]{4}x")
    async with serving(home) as engine:
        alone = [await ask(engine, name, PROMPTS[1], n=3, sampling=warm) for name in NAMES]
        mixed = await asyncio.gather(
            *(ask(engine, name, PROMPTS[1], n=3, sampling=warm) for name in NAMES),
            *(ask(engine, name, PROMPTS[0], constraint=form) for name in NAMES),
        )

    assert list(mixed[:4]) == [Said(said.tokens, 32) for said in alone]
    texts = [bytes(said.first[:5]).decode() for said in mixed[4:]]
    assert all(text.endswith("x") and len(text) == 5 for text in texts)
    assert len(set(texts)) > 1


async def test_a_bad_adapter_is_refused_and_the_rest_go_on(home: Home, tmp_path: Path) -> None:
    write_adapter(tmp_path / "good", home.model)
    write_adapter(tmp_path / "bad", home.model, changes={"r": 7})
    async with serving(home, adapters=tmp_path, max_adapters=1) as engine:
        with pytest.raises(InvalidRequest, match=r"adapter 'bad'.*should be"):
            await ask(engine, "bad", PROMPTS[0])
        with pytest.raises(NotFound, match="'none'"):
            await ask(engine, "none", PROMPTS[0])
        assert len((await ask(engine, "good", PROMPTS[0])).first) == NEW_TOKENS


async def test_a_request_that_is_closed_early_gives_its_adapter_back(home: Home) -> None:
    async with serving(home, max_adapters=1) as engine:
        for _ in range(5):
            outputs: Any = engine.generate(EngineRequest("r", PROMPTS[0], 200, adapter="one"))
            await anext(outputs)
            await outputs.aclose()
        assert (await ask(engine, "two", PROMPTS[0])).first == home.expected["two"][0]


async def test_a_request_that_can_never_fit_is_refused_while_all_adapters_are_used(
    home: Home,
) -> None:
    async with serving(home, max_adapters=1) as engine:
        outputs: Any = engine.generate(EngineRequest("r", PROMPTS[0], 200, adapter="one"))
        await anext(outputs)
        with pytest.raises(PromptTooLong):
            await ask(engine, "two", PROMPTS[0], max_tokens=10**6)
        await outputs.aclose()
