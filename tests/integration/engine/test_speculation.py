"""Speculation changes no token: every feature of the engine, with drafts and without.

Checkpoints are random, so texts hardly repeat themselves; where n-grams shall foretell them, all but
a few tokens are biased away. A model that is its own draft, or nearly, makes guesses stand.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock_engine.api import (
    EngineRequest,
    Logprob,
    Priority,
    RequestDone,
    Sampling,
    TokenOut,
)
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_testing.engines.checkpoints import write_checkpoint

BLOCK = 8
PHRASE = [17, 40, 5, 99, 31, 200, 64]
PROMPT = [*PHRASE, 3, *PHRASE, 8, *PHRASE, 77, *PHRASE[:4]]
GREEDY = Sampling(temperature=0.0)
FEW = dict.fromkeys(PHRASE[:3], 30.0)
"""A bias that leaves three tokens to choose from, so that texts repeat and n-grams foretell them."""
COOL = Sampling(temperature=0.5, seed=4, logit_bias=FEW)
WARM = Sampling(temperature=1.0, top_p=0.95, top_k=40, seed=21)


@dataclass(frozen=True, slots=True)
class Drafting:
    """A way to draft that the outputs must not show."""

    kind: str
    model: Path | None = None


@dataclass
class Said:
    """What a request put out."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[Logprob]] = field(default_factory=dict)
    ends: dict[int, tuple[object, int | None]] = field(default_factory=dict)
    done: RequestDone | None = None

    @property
    def last(self) -> RequestDone:
        assert self.done is not None
        return self.done


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("speculated"))


@pytest.fixture(scope="session")
def near(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a little noise: many of its guesses stand, not all."""
    path = write_checkpoint(tmp_path_factory.mktemp("near"))
    weights, generator = load_file(model / "model.safetensors"), torch.Generator().manual_seed(1)
    noisy = {
        name: weight * (1 + 0.03 * torch.randn(weight.shape, generator=generator))
        for name, weight in weights.items()
    }
    save_file(noisy, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture(params=["ngram", "draft", "near", "auto"])
def drafting(request: pytest.FixtureRequest, model: Path, near: Path) -> Drafting:
    return {
        "ngram": Drafting("ngram"),
        "draft": Drafting("draft", model),
        "near": Drafting("draft", near),
        "auto": Drafting("auto", near),
    }[request.param]


@asynccontextmanager
async def serving(settings: NativeSettings) -> AsyncIterator[NativeEngine]:
    engine = NativeEngine(settings)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def ask(name: str, max_tokens: int = 40, **changes: object) -> EngineRequest:
    fields: dict[str, object] = {"prompt": PROMPT, "sampling": GREEDY, "speculation": True}
    return EngineRequest(name, max_tokens=max_tokens, **(fields | changes))  # type: ignore[arg-type]


async def run(engine: NativeEngine, request: EngineRequest) -> Said:
    said = Said()
    async with asyncio.timeout(60):
        async for output in engine.generate(request):
            if isinstance(output, TokenOut):
                choice = output.choice_index
                said.tokens.setdefault(choice, []).extend(output.token_ids)
                said.logprobs.setdefault(choice, []).extend(output.logprobs)
                said.ends[choice] = (output.finish, output.matched_token)
            elif isinstance(output, RequestDone):
                said.done = output
    return said


async def both(
    model: Path, drafting: Drafting, requests: Sequence[EngineRequest], **changes: object
) -> tuple[list[Said], list[Said]]:
    """What requests that arrive together put out, without and with drafts."""
    fields: dict[str, object] = {"device": "cpu", "kv_blocks": 64, "block_tokens": BLOCK}
    fields |= {"threads": 1} | changes
    plain = NativeSettings(model, **fields)  # type: ignore[arg-type]
    drafted = replace(plain, speculation=drafting.kind, draft_model=drafting.model)
    found = []
    for settings in (plain, drafted):
        async with serving(settings) as engine:
            found.append(await asyncio.gather(*(run(engine, request) for request in requests)))
            assert engine.state().used_blocks == 0
    for before, after in zip(*found, strict=True):
        assert after.tokens == before.tokens
        assert after.ends == before.ends
    return found[0], found[1]


def accepted(said: Sequence[Said]) -> int:
    return sum(one.last.accepted_draft_tokens for one in said)


@pytest.mark.parametrize("sampling", [GREEDY, COOL, WARM])
async def test_a_request_alone(model: Path, drafting: Drafting, sampling: Sampling) -> None:
    plain, drafted = await both(model, drafting, [ask("a", 60, sampling=sampling)])

    assert plain[0].last.drafted_tokens == 0
    assert drafted[0].last.drafted_tokens >= drafted[0].last.accepted_draft_tokens
    if drafting.kind == "draft":
        assert accepted(drafted) > 0


async def test_ngrams_foretell_a_text_that_repeats_itself(model: Path) -> None:
    requests = [
        ask("greedy", 120, sampling=replace(GREEDY, logit_bias=FEW)),
        ask("cool", 120, sampling=COOL),
    ]
    _, drafted = await both(model, Drafting("ngram"), requests)

    assert accepted(drafted[:1]) > 50
    assert accepted(drafted[1:]) > 20


async def test_the_engine_tells_how_many_tokens_a_step_yields(model: Path) -> None:
    settings = NativeSettings(
        model, device="cpu", kv_blocks=64, threads=1, speculation="draft", draft_model=model
    )
    async with serving(settings) as engine:
        await run(engine, ask("a", 200))

        assert engine.state().tokens_per_step > 3


async def test_a_perfect_draft_model_always_stands(model: Path) -> None:
    """The fused kernel computes drafts in bytes, so only PyTorch's own are perfect."""
    requests = [ask("a", 60), ask("b", 60, sampling=WARM)]
    _, drafted = await both(model, Drafting("draft", model), requests, kernel="eager")

    for said in drafted:
        assert said.last.accepted_draft_tokens == said.last.drafted_tokens > 40


async def test_a_batch_of_many_kinds(model: Path, drafting: Drafting) -> None:
    requests = [
        ask(f"{i}", 20 + i, prompt=[i, *PROMPT][: 5 + 3 * i], sampling=sampling, speculation=wish)
        for i, (sampling, wish) in enumerate(
            [
                (GREEDY, True),
                (COOL, None),
                (WARM, False),
                (GREEDY, None),
                (COOL, True),
                (WARM, True),
            ]
        )
    ]
    _, drafted = await both(model, drafting, requests)

    assert drafted[2].last.drafted_tokens == 0


async def test_prompts_in_chunks_beside_decodes(model: Path, drafting: Drafting) -> None:
    """The budget of a step is small, so prompts, decodes and drafts compete for it."""
    requests = [ask(f"{i}", 30, prompt=[i, *PROMPT, *PROMPT], sampling=COOL) for i in range(5)]

    _, drafted = await both(model, drafting, requests, max_batch=4, max_batched_tokens=7)

    assert accepted(drafted) > 0


async def test_a_prefix_that_drafts_helped_to_fill_is_reused(
    model: Path, drafting: Drafting
) -> None:
    settings = NativeSettings(
        model, device="cpu", kv_blocks=64, block_tokens=BLOCK, threads=1,
        speculation=drafting.kind, draft_model=drafting.model,
    )  # fmt: skip
    async with serving(settings) as engine:
        first = await run(engine, ask("first", 50))
        prompt = [*PROMPT, *first.tokens[0], 1, 2]
        warm = await run(engine, ask("warm", 30, prompt=prompt))
    cold, _ = await both(model, drafting, [ask("cold", 30, prompt=prompt)])

    assert warm.tokens == cold[0].tokens
    assert accepted([first, warm]) > 0
    # All but the last token of the first answer had its KV, and none that fell is among them.
    assert warm.last.cached_tokens == (len(prompt) - 3) // BLOCK * BLOCK


@pytest.mark.parametrize("batch", [8, 2])
async def test_samples_fork(model: Path, drafting: Drafting, batch: int) -> None:
    requests = [ask("a", 25, n=4, sampling=WARM), ask("b", 12, n=2, sampling=COOL)]

    _, drafted = await both(model, drafting, requests, max_batch=batch, max_batched_tokens=64)

    assert accepted(drafted) > 0


async def test_preemption(model: Path, drafting: Drafting) -> None:
    requests = [
        ask(f"{i}", 40, prompt=[i, *PROMPT[:10]], sampling=COOL, priority=priority)
        for i, priority in enumerate([Priority.BATCH, Priority.STANDARD, Priority.BATCH] * 2)
    ]
    plain, drafted = await both(model, drafting, requests, kv_blocks=14)

    assert sum(one.last.preemptions for one in plain) > 0
    assert sum(one.last.preemptions for one in drafted) > 0
    assert accepted(drafted) > 0


async def test_resumed_requests(model: Path, drafting: Drafting) -> None:
    whole = (await both(model, drafting, [ask("a", 40, n=2, sampling=WARM)]))[1][0].tokens
    emitted = [whole[0][:9], whole[1][:22]]
    _, rest = await both(
        model, drafting, [ask("a", 40, n=2, sampling=WARM, emitted=emitted)]
    )  # fmt: skip

    assert rest[0].tokens == {0: whole[0][9:], 1: whole[1][22:]}


@pytest.mark.parametrize(
    "changes",
    [
        {"frequency_penalty": 0.4, "presence_penalty": 0.3},
        {"repetition_penalty": 1.2},
        {"logit_bias": {17: 2.0, 40: -2.0}},
        {"min_p": 0.1, "temperature": 0.7},
    ],
)
async def test_adjustments_see_the_tokens_before_them(
    model: Path, drafting: Drafting, changes: dict[str, float]
) -> None:
    requests = [ask("greedy", 50, sampling=replace(GREEDY, **changes))]  # type: ignore[arg-type]
    requests += [ask("warm", 50, sampling=replace(COOL, **changes))]  # type: ignore[arg-type]

    await both(model, drafting, requests)


async def test_stop_tokens_end_in_the_middle_of_accepted_ones(
    model: Path, drafting: Drafting
) -> None:
    free = (await both(model, drafting, [ask("free", 60)]))[0][0].tokens[0]
    requests = [
        ask(f"{at}", 60, stop_token_ids=frozenset({free[at]}), min_tokens=at // 2)
        for at in (3, 11, 18, 26)
    ]

    _, drafted = await both(model, drafting, requests)
    for said in drafted:
        assert len(said.tokens[0]) >= said.last.accepted_draft_tokens


async def test_limits_are_exact(model: Path, drafting: Drafting) -> None:
    requests = [ask(f"{limit}", limit) for limit in (1, 2, 3, 5, 8, 13)]
    _, drafted = await both(model, drafting, requests)

    assert [len(said.tokens[0]) for said in drafted] == [1, 2, 3, 5, 8, 13]


async def test_log_probabilities_come_for_every_token(model: Path, drafting: Drafting) -> None:
    plain, drafted = await both(model, drafting, [ask("a", 30, logprobs=2), ask("b", 9)])

    before, after = plain[0].logprobs[0], drafted[0].logprobs[0]
    assert [one.token_id for one in after] == drafted[0].tokens[0]
    assert [one.logprob for one in after] == pytest.approx(
        [one.logprob for one in before], abs=1e-3
    )
    assert [len(one.top) for one in after] == [2] * 30
    assert drafted[1].logprobs[0] == []


async def test_abort_frees_what_drafts_held(model: Path, drafting: Drafting) -> None:
    settings = NativeSettings(
        model, device="cpu", kv_blocks=30, block_tokens=BLOCK, threads=1,
        speculation=drafting.kind, draft_model=drafting.model,
    )  # fmt: skip
    async with serving(settings) as engine:
        async with asyncio.timeout(30):
            async for output in engine.generate(ask("a", 150, n=3, sampling=WARM)):
                if isinstance(output, TokenOut) and output.first_position > 20:
                    engine.abort("a")
        after = await run(engine, ask("b", 100))

        assert len(after.tokens[0]) == 100
        assert engine.state().used_blocks == 0
