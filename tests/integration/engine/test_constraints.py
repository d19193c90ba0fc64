"""Constrained answers of a real engine: they parse or say why they stopped, in every company.

Checkpoints are random, so nothing but the constraint makes an answer well formed.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock_core.errors import InvalidRequest
from penstock_engine.api import (
    Constraint,
    EngineRequest,
    FinishReason,
    Priority,
    RequestDone,
    Sampling,
    TokenOut,
)
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_engine.native.structured.vocabulary import Vocabulary
from penstock_models import DEMO
from penstock_testing.engines.checkpoints import write_checkpoint
from penstock_text.tokenizer import Tokenizer

WORDS = [b"name", b'{"', b'":', b"true", b"123", b"  ", b"yes", b"no", b"ab", b"},", b"]}"]
TOKENS = [*(bytes([value]) for value in range(256)), *WORDS, b""]
WORDBOOK = Vocabulary(TOKENS)
EOS = len(TOKENS) - 1
SIZE = len(TOKENS) + 4
BLOCK = 8
PROMPT = [(7 * i + i * i) % 250 for i in range(30)]
GREEDY, WARM = Sampling(temperature=0.0), Sampling(temperature=1.0, seed=5)


def _person(value: object) -> bool:
    assert isinstance(value, dict)
    assert set(value) == {"name", "age", "tags"}
    assert len(value["name"]) <= 6
    assert 0 <= value["age"] <= 150
    return all(tag in ("red", "green") for tag in value["tags"]) and len(value["tags"]) <= 2


def _tree(value: object) -> bool:
    assert isinstance(value, dict)
    return type(value["leaf"]) is bool and ("next" not in value or _tree(value["next"]))


def _pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(v is None or v == 7 for v in value)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TREE = {
    "type": "object",
    "properties": {"leaf": {"type": "boolean"}, "next": {"$ref": "#"}},
    "required": ["leaf"],
    "additionalProperties": False,
}
PAIR = {
    "type": "array",
    "items": {"anyOf": [{"type": "null"}, {"const": 7}]},
    "minItems": 2,
    "maxItems": 2,
}
REGEX = r"[a-f]{2,5}(-[0-9]+)?"
LARK = 'start: "(" start ")" | /[xyz]/'
CHOICES = ("yes", "no", "maybe so", "nö")


def _schema(value: object) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


@dataclass(frozen=True)
class Shape:
    """A constraint, and whether a finished answer keeps it."""

    constraint: Constraint
    holds: Callable[[str], bool]


SHAPES = {
    "person": Shape(_schema(PERSON), lambda text: _person(json.loads(text))),
    "tree": Shape(_schema(TREE), lambda text: _tree(json.loads(text))),
    "pair": Shape(_schema(PAIR), lambda text: _pair(json.loads(text))),
    "object": Shape(Constraint("json_object"), lambda text: isinstance(json.loads(text), dict)),
    "regex": Shape(Constraint("regex", REGEX), lambda text: bool(re.fullmatch(REGEX, text))),
    "grammar": Shape(
        Constraint("grammar", LARK), lambda text: bool(re.fullmatch(r"\(*[xyz]\)*", text))
    ),
    "choice": Shape(Constraint("choice", options=CHOICES), lambda text: text in CHOICES),
}


@dataclass
class Said:
    """What a request put out."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    ends: dict[int, FinishReason | None] = field(default_factory=dict)
    last: RequestDone | None = None

    def text(self, choice: int = 0) -> str:
        return b"".join(TOKENS[token] for token in self.tokens[choice]).decode("utf-8", "replace")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"vocab_size": SIZE, "eos_token_id": EOS, "max_position_embeddings": 1024}
    return write_checkpoint(tmp_path_factory.mktemp("constrained"), changes)


@asynccontextmanager
async def serving(
    model: Path, vocabulary: Vocabulary = WORDBOOK, **changes: object
) -> AsyncIterator[NativeEngine]:
    fields: dict[str, object] = {"device": "cpu", "kv_blocks": 128, "block_tokens": BLOCK}
    chosen = NativeSettings(model, **(fields | {"threads": 1} | changes))  # type: ignore[arg-type]
    engine = NativeEngine(chosen, vocabulary)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def ask(name: str, shape: str, max_tokens: int = 80, **changes: object) -> EngineRequest:
    fields: dict[str, object] = {"prompt": PROMPT, "sampling": WARM}
    fields["stop_token_ids"] = frozenset({EOS})
    fields["constraint"] = SHAPES[shape].constraint if shape else None
    return EngineRequest(name, max_tokens=max_tokens, **(fields | changes))  # type: ignore[arg-type]


async def run(
    engine: NativeEngine, request: EngineRequest, begun: asyncio.Event | None = None
) -> Said:
    said = Said()
    async with asyncio.timeout(60):
        async for output in engine.generate(request):
            if isinstance(output, TokenOut):
                said.tokens.setdefault(output.choice_index, []).extend(output.token_ids)
                said.ends[output.choice_index] = output.finish
                if begun is not None and len(said.tokens[0]) > 5:
                    begun.set()
            elif isinstance(output, RequestDone):
                said.last = output
    return said


async def together(engine: NativeEngine, requests: Sequence[EngineRequest]) -> list[Said]:
    return list(await asyncio.gather(*(run(engine, request) for request in requests)))


def check(said: Said, shape: str, max_tokens: int) -> None:
    for choice, end in said.ends.items():
        if end is FinishReason.STOP:
            assert SHAPES[shape].holds(said.text(choice)), said.text(choice)
        else:
            assert end is FinishReason.LENGTH
            assert len(said.tokens[choice]) == max_tokens


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.0, 0.7, 1.0, 3.0]))
def test_an_answer_keeps_its_shape_or_says_that_it_was_cut(
    model: Path, seed: int, temperature: float
) -> None:
    async def scenario() -> None:
        sampling = Sampling(temperature=temperature, seed=seed)
        prompt = [seed % 250, *PROMPT]
        async with serving(model) as engine:
            wanted = [ask(s, s, prompt=prompt, sampling=sampling) for s in SHAPES]
            for shape, said in zip(SHAPES, await together(engine, wanted), strict=True):
                check(said, shape, 80)
                # All others may be filled with white space, or have no longest answer.
                assert shape != "choice" or said.ends[0] is FinishReason.STOP

    asyncio.run(scenario())


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
async def test_a_mixed_batch_says_what_each_would_alone(model: Path, sampling: Sampling) -> None:
    shapes = ["person", "", "regex", "object", "", "choice", "tree"]
    wanted = [ask(f"{i}", s, 40, sampling=sampling) for i, s in enumerate(shapes)]
    async with serving(model) as engine:
        alone = [await run(engine, request) for request in wanted]
    async with serving(model, max_batched_tokens=48) as engine:
        batch = await together(engine, wanted)

    assert [said.tokens for said in batch] == [said.tokens for said in alone]
    assert [said.ends for said in batch] == [said.ends for said in alone]


async def test_a_cached_prefix_changes_nothing(model: Path) -> None:
    async with serving(model) as engine:
        cold = await run(engine, ask("cold", "person"))
        warm = await run(engine, ask("warm", "person"))

    assert warm.last is not None
    assert warm.last.cached_tokens > 0
    assert warm.tokens == cold.tokens


async def test_samples_share_the_prompt_and_follow_the_constraint_apart(model: Path) -> None:
    async with serving(model) as engine:
        first = await run(engine, ask("one", "person"))
        three = await run(engine, ask("three", "person", n=3))

    assert three.tokens[0] == first.tokens[0]
    assert len({tuple(tokens) for tokens in three.tokens.values()}) == 3
    check(three, "person", 80)


async def test_a_preempted_answer_goes_on_within_its_constraint(model: Path) -> None:
    wanted = ask("low", "object", 100, priority=Priority.BATCH)
    async with serving(model) as engine:
        undisturbed = await run(engine, wanted)
    async with serving(model, kv_blocks=20) as engine:
        begun = asyncio.Event()
        low = asyncio.create_task(run(engine, wanted, begun))
        await begun.wait()
        high = ask("high", "", 100, prompt=PROMPT[::-1], priority=Priority.SYSTEM)
        await run(engine, high)
        disturbed = await low

    assert disturbed.last is not None
    assert disturbed.last.preemptions > 0
    assert disturbed.tokens == undisturbed.tokens
    assert disturbed.ends == undisturbed.ends


@pytest.mark.parametrize("shape", ["person", "tree", "object", "regex"])
async def test_a_resumed_answer_goes_on_as_if_never_interrupted(model: Path, shape: str) -> None:
    async with serving(model) as engine:
        whole = await run(engine, ask("whole", shape, n=2))
        halves = [whole.tokens[i][: len(whole.tokens[i]) // 2] for i in range(2)]
        rest = await run(engine, ask("rest", shape, n=2, emitted=halves))

    for i in range(2):
        assert halves[i] + rest.tokens[i] == whole.tokens[i]
    assert rest.ends == whole.ends


async def test_a_complete_answer_resumed_ends_at_once(model: Path) -> None:
    async with serving(model) as engine:
        said = await run(engine, ask("a", "choice", emitted=[list(b"maybe so")]))

    assert said.tokens == {0: []}
    assert said.ends == {0: FinishReason.STOP}


@pytest.mark.parametrize("kind", ["none", "ngram", "draft"])
@pytest.mark.parametrize("shape", list(SHAPES))
async def test_drafts_change_no_constrained_token(model: Path, shape: str, kind: str) -> None:
    wanted = [
        ask(f"{i}", shape, n=2, sampling=sampling, speculation=True)
        for i, sampling in enumerate((GREEDY, WARM))
    ]
    async with serving(model) as engine:
        plain = await together(engine, [replace(each, speculation=False) for each in wanted])
    draft = model if kind == "draft" else None
    async with serving(model, speculation=kind, draft_model=draft) as engine:
        drafted = await together(engine, wanted)

    assert [said.tokens for said in drafted] == [said.tokens for said in plain]
    assert [said.ends for said in drafted] == [said.ends for said in plain]
    if kind == "draft" and shape in {"person", "tree", "object"}:  # the rest is cut to nothing
        assert sum(said.last.drafted_tokens for said in drafted if said.last) > 0


async def test_drafts_within_the_constraint_are_accepted(model: Path) -> None:
    wanted = ask("a", "", speculation=True, constraint=Constraint("regex", "(ab){30}"))
    async with serving(model, speculation="ngram") as engine:
        said = await run(engine, wanted)

    assert said.text() == "ab" * 30
    assert said.last is not None
    assert said.last.accepted_draft_tokens > 10


@pytest.mark.parametrize("kernel", ["fused", "eager"])
async def test_where_a_constraint_leaves_no_choice_its_tokens_are_drafts_that_stand(
    model: Path, kernel: str
) -> None:
    wanted = ask("a", "person", 200, sampling=WARM, speculation=True)
    async with serving(model, kernel=kernel) as engine:
        said = await run(engine, wanted)
        plain = await run(engine, replace(wanted, request_id="b", speculation=False))

    assert said.tokens == plain.tokens
    assert said.last is not None
    assert plain.last is not None
    assert said.last.accepted_draft_tokens == said.last.drafted_tokens >= 3
    assert plain.last.drafted_tokens == 0


async def test_penalties_and_truncation_see_only_what_is_allowed(model: Path) -> None:
    sampling = Sampling(
        temperature=1.0, top_k=1, top_p=0.1, min_p=0.5, repetition_penalty=0.5,
        frequency_penalty=2.0, logit_bias={ord("z"): 100.0}, seed=1,
    )  # fmt: skip
    async with serving(model) as engine:
        said = await run(engine, ask("a", "regex", sampling=sampling, logprobs=2))

    check(said, "regex", 80)


async def test_an_answer_ends_without_an_end_token_where_nothing_may_follow(model: Path) -> None:
    async with serving(model) as engine:
        said = await run(engine, ask("a", "person", 200, stop_token_ids=frozenset()))

    assert said.ends == {0: FinishReason.STOP}
    assert SHAPES["person"].holds(said.text())


@pytest.mark.parametrize("speculation", ["none", "ngram"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_the_demo_model_keeps_every_shape(temperature: float, speculation: str) -> None:
    tokenizer = Tokenizer.load(DEMO)
    tokens = [tokenizer.text_bytes(token) for token in range(tokenizer.vocab_size)]
    words = Vocabulary(tokens, partial(tokenizer.encode, add_special_tokens=False))
    sampling = Sampling(temperature=temperature, seed=2)
    prompt = tokenizer.encode("# A person as JSON\nPERSON = ")
    ends = tokenizer.eos_token_ids
    wanted = [ask(s, s, 100, prompt=prompt, sampling=sampling, stop_token_ids=ends) for s in SHAPES]
    async with serving(DEMO, vocabulary=words, speculation=speculation) as engine:
        for shape, said in zip(SHAPES, await together(engine, wanted), strict=True):
            text = tokenizer.decode(said.tokens[0])
            is_cut = said.ends[0] is FinishReason.LENGTH
            assert is_cut if len(said.tokens[0]) == 100 else SHAPES[shape].holds(text)


async def test_a_bad_constraint_is_refused_and_the_engine_serves_on(model: Path) -> None:
    async with serving(model) as engine:
        with pytest.raises(InvalidRequest):
            await run(engine, ask("a", "", constraint=Constraint("regex", "(")))
        assert (await run(engine, ask("b", "choice"))).text() in CHOICES
        assert engine.state().waiting == 0
