"""Draws under what followers allow, in the kernel: the same as under their masks, and heard of at once."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from llguidance import LLMatcher

from penstock_engine.api import Constraint, EngineRequest, FinishReason
from penstock_engine.native.fused.draw import KernelRows
from penstock_engine.native.fused.following import FollowedMasks, Follower
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Matcher, Request
from penstock_engine.native.structured import grammars as module
from penstock_engine.native.structured.grammars import Grammars, LibraryCompiler
from penstock_engine.native.structured.llguidance_c import CMatcher, open_grammar_library
from penstock_engine.native.structured.masks import FollowedRows
from penstock_engine.native.structured.vocabulary import Vocabulary
from penstock_testing.engines.kernel import kernel_or_lack

TOKENS = [*(bytes([value]) for value in range(256)), b"ab", b"true", b'{"', b'":', b""]
SIZE, EOS = len(TOKENS), len(TOKENS) - 1
SCHEMA = {
    "type": "object",
    "properties": {"ab": {"type": "boolean"}, "n": {"type": "integer"}},
    "required": ["ab", "n"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Kernel:
    rows: KernelRows
    masks: FollowedMasks
    grammars: Grammars[CMatcher]

    def begin(self, request: Request, *drafts: int) -> FollowedRows:
        draws = tuple(sample for sample in request.samples if not sample.is_complete)
        chunk = Chunk(draws[0], 0, 1 + len(drafts), 1 + len(drafts), draws, drafts)
        finish = self.masks.begin(StepPlan((chunk,)))
        assert finish is not None
        return finish()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    library = kernel_or_lack()
    if isinstance(library, str):
        pytest.skip(library)
    functions = open_grammar_library()
    assert functions is not None
    masks = FollowedMasks(library, functions, SIZE)
    grammars = Grammars(Vocabulary(TOKENS), SIZE, 8, masks.compiler)
    yield Kernel(KernelRows(library), masks, grammars)
    grammars.close()


def ask(constraint: Constraint, **changes: object) -> EngineRequest:
    fields: dict[str, object] = {"prompt": [1], "max_tokens": 60, "constraint": constraint}
    fields["stop_token_ids"] = frozenset({EOS})
    return EngineRequest("r", **(fields | changes))  # type: ignore[arg-type]


async def made(kernel: Kernel, spec: EngineRequest) -> Request:
    return Request(spec, 0, 0.0, await kernel.grammars.matchers(spec))


def favouring(*tokens: int) -> torch.Tensor:
    logits = torch.zeros(len(tokens), SIZE)
    for row, token in enumerate(tokens):
        logits[row, token] = 5.0
    return logits


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("seed", range(6))
async def test_draws_are_those_from_forbidden_logits_to_the_end_of_an_answer(
    kernel: Kernel, temperature: float, seed: int
) -> None:
    torch.manual_seed(seed)
    points = random.Random(seed)
    request = await made(kernel, ask(Constraint("json_schema", json.dumps(SCHEMA)), n=3))
    while not request.is_finished and all(s.num_output < 60 for s in request.samples):
        rows = kernel.begin(request)
        logits = torch.randn(len(rows.followers), SIZE)
        forbidden = logits.clone()
        kernel.rows.forbid(forbidden, rows)
        chosen = [temperature] * len(logits), [points.random() for _ in logits]
        live = [sample for sample in request.samples if not sample.is_complete]

        drawn = kernel.rows.pick(logits, *chosen, rows)

        assert drawn == kernel.rows.pick(forbidden, *chosen)
        assert not rows.ends
        for sample, token in zip(live, drawn, strict=True):
            if token == EOS:
                return
            sample.tokens.append(token)
            assert sample.matcher is not None
            sample.matcher.advance(token)


async def test_what_was_drawn_is_followed_whether_or_not_it_was_drawn_under_drafts(
    kernel: Kernel,
) -> None:
    request = await made(kernel, ask(Constraint("regex", "[ab]{4}x")))
    (matcher,) = (sample.matcher for sample in request.samples)
    assert matcher is not None
    rows = kernel.begin(request)
    assert kernel.rows.pick(favouring(ord("b")), [0.0], [0.0], rows) == [ord("b")]
    matcher.advance(ord("b"))

    behind = kernel.begin(request, ord("a"), ord("x"))
    drawn = kernel.rows.pick(favouring(ord("a"), ord("b"), ord("b")), [0.0] * 3, [0.0] * 3, behind)

    assert drawn[:2] == [ord("a"), ord("b")]
    for token in drawn[:2]:
        matcher.advance(token)
    assert matcher.permitted(list(b"ax")) == 2


@pytest.mark.parametrize(("samples", "looks"), [(1, True), (8, True), (9, False)])
async def test_only_where_few_are_followed_is_it_looked_for_what_alone_may_follow(
    kernel: Kernel, samples: int, looks: bool
) -> None:
    request = await made(kernel, ask(Constraint("regex", "x{40}"), n=samples))
    rows = kernel.begin(request)

    drawn = kernel.rows.pick(torch.zeros(samples, SIZE), [0.0] * samples, [0.0] * samples, rows)

    assert drawn == [ord("x")] * samples
    for sample in request.samples:
        assert sample.matcher is not None
        sample.matcher.advance(ord("x"))
        assert (list(sample.matcher.foreseen(5)) == [ord("x")] * 5) is looks


async def test_rows_without_a_constraint_draw_freely_beside_others(kernel: Kernel) -> None:
    bound = await made(kernel, ask(Constraint("regex", "a+")))
    free = Request(EngineRequest("free", [1], 9), 1, 0.0)
    chunks = [Chunk(r.samples[0], 0, 1, 1, (r.samples[0],)) for r in (free, bound)]
    finish = kernel.masks.begin(StepPlan(tuple(chunks)))
    assert finish is not None

    assert kernel.rows.pick(favouring(7, 7), [0.0] * 2, [0.0] * 2, finish()) == [7, ord("a")]
    assert kernel.masks.begin(StepPlan((chunks[0],))) is None


async def test_a_row_where_nothing_may_follow_says_so(kernel: Kernel) -> None:
    spec = ask(Constraint("choice", options=("",)), stop_token_ids=frozenset())
    rows = kernel.begin(await made(kernel, spec))

    kernel.rows.pick(favouring(7), [0.0], [0.0], rows)

    assert rows.ends == {0: FinishReason.STOP}


async def test_a_sample_may_not_go_on_with_another_token_than_was_drawn_for_it(
    kernel: Kernel,
) -> None:
    request = await made(kernel, ask(Constraint("regex", "[ab]+")))
    kernel.rows.pick(favouring(ord("b")), [0.0], [0.0], kernel.begin(request))

    with pytest.raises(AssertionError, match="another token"):
        request.samples[0].matcher.advance(ord("a"))  # type: ignore[union-attr]


AnyGrammars = Grammars[LLMatcher] | Grammars[CMatcher]


@pytest.fixture(params=["python", "kernel"])
def grammars(request: pytest.FixtureRequest, kernel: Kernel) -> Iterator[AnyGrammars]:
    words = Vocabulary(TOKENS)
    python = request.param == "python"
    made: AnyGrammars = (
        Grammars(words, SIZE, 8, LibraryCompiler)
        if python
        else Grammars(words, SIZE, 8, kernel.masks.compiler)
    )
    yield made
    made.close()


async def let_go(grammars: AnyGrammars) -> None:
    """Once the thread has done something else, it holds none of the matchers that it made before."""
    await grammars.matchers(ask(Constraint("regex", "else")))


async def answered(grammars: AnyGrammars, constraint: Constraint, text: bytes) -> int:
    """Follow a text and be gone; how many tokens the template that is copied next went through."""
    (matcher,) = await grammars.matchers(ask(constraint))
    await let_go(grammars)
    for value in text:
        matcher.advance(value)
    del matcher
    await grammars.matchers(ask(constraint))
    return grammars._compiled[constraint].num_tokens


async def test_the_next_sample_knows_what_the_last_one_learnt(grammars: AnyGrammars) -> None:
    constraint = Constraint("regex", "[ab]{50}")

    assert await answered(grammars, constraint, b"abab") == 4
    assert await answered(grammars, constraint, b"ab" * 25) == 54
    (matcher,) = await grammars.matchers(ask(constraint))
    assert matcher.ended is None
    assert matcher.permitted(list(b"ba" * 25)) == 50


async def test_nothing_is_learnt_from_a_matcher_that_broke(grammars: AnyGrammars) -> None:
    constraint = Constraint("regex", "[ab]{50}")

    assert await answered(grammars, constraint, b"abx") == 0
    (matcher,) = await grammars.matchers(ask(constraint))
    assert matcher.permitted(list(b"ab")) == 2


async def test_templates_stop_learning(
    grammars: AnyGrammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_LEARNT", 5)
    constraint = Constraint("regex", "[ab]*")

    counts = [await answered(grammars, constraint, b"aba") for _ in range(4)]

    assert counts == [3, 6, 6, 6]


async def test_a_stop_token_leaves_a_matcher_that_can_be_learnt_from(kernel: Kernel) -> None:
    constraint = Constraint("regex", "ab?c?")
    request = await made(kernel, ask(constraint))
    sample = request.samples[0]
    for token in (ord("a"), EOS):
        drawn = kernel.rows.pick(favouring(token), [0.0], [0.0], kernel.begin(request))
        assert drawn == [token]
        if token != EOS:
            sample.tokens.append(token)
            sample.matcher.advance(token)  # type: ignore[union-attr]
    assert isinstance(sample.matcher, Follower)
    await let_go(kernel.grammars)
    sample.matcher = None
    await kernel.grammars.matchers(ask(constraint))

    assert kernel.grammars._compiled[constraint].num_tokens == 1


async def test_matchers_outlive_what_others_learnt(grammars: AnyGrammars) -> None:
    constraint = Constraint("regex", "[ab]{3}")
    (early,) = await grammars.matchers(ask(constraint))
    early.advance(ord("a"))
    await answered(grammars, constraint, b"ab")
    found: list[Matcher] = [early, *await grammars.matchers(ask(constraint))]

    assert [matcher.permitted(list(b"aaaa")) for matcher in found] == [2, 3]
