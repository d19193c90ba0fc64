"""Constraints compiled against a vocabulary: what may follow, what is refused, what is remembered."""

import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
from llguidance import LLMatcher

from penstock_core.errors import InvalidRequest, NotSupported, Overloaded
from penstock_engine.api import Constraint, EngineRequest, FinishReason
from penstock_engine.native.fused.following import FollowedMasks
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Matcher, Request
from penstock_engine.native.structured.grammars import Grammars, LibraryCompiler
from penstock_engine.native.structured.llguidance_c import CMatcher, open_grammar_library
from penstock_engine.native.structured.masks import FollowedRows, Masks, RowMasks, StepMasks
from penstock_engine.native.structured.vocabulary import Cutter, Vocabulary
from penstock_testing.engines.kernel import kernel_or_lack

WORDS = [b"ab", b"abc", b"true", b'{"', b'":']
TOKENS = [*(bytes([value]) for value in range(256)), *WORDS, b""]
EOS = len(TOKENS) - 1
SCHEMA = {
    "type": "object",
    "properties": {"ab": {"type": "boolean"}, "n": {"enum": ["abc", 12, None]}},
    "required": ["ab", "n"],
    "additionalProperties": False,
}
SIZE = len(TOKENS) + 30  # models pad their vocabulary


AnyGrammars = Grammars[LLMatcher] | Grammars[CMatcher]


@pytest.fixture(params=["python", "kernel"])
def parts(request: pytest.FixtureRequest) -> Iterator[tuple[AnyGrammars, StepMasks]]:
    """Both ways to know what may follow: by Python's threads and by the kernel's."""
    words = Vocabulary(TOKENS)
    made = (
        (
            Grammars(words, SIZE, 2, LibraryCompiler),
            Masks(SIZE),
        )
        if request.param == "python"
        else kernel_parts(words)
    )
    yield made
    for part in made:
        part.close()


def kernel_parts(words: Vocabulary) -> tuple[AnyGrammars, StepMasks]:
    library = kernel_or_lack()
    if isinstance(library, str):
        pytest.skip(library)
    functions = open_grammar_library()
    assert functions is not None, "the pinned llguidance exports no C interface that is known"
    masks = FollowedMasks(library, functions, SIZE)
    return Grammars(words, SIZE, 2, masks.compiler), masks


@pytest.fixture
def grammars(parts: tuple[AnyGrammars, StepMasks]) -> AnyGrammars:
    return parts[0]


@pytest.fixture
def masks(parts: tuple[AnyGrammars, StepMasks]) -> StepMasks:
    return parts[1]


def ask(constraint: Constraint, **changes: object) -> EngineRequest:
    fields: dict[str, object] = {"prompt": [1], "max_tokens": 50, "constraint": constraint}
    fields["stop_token_ids"] = frozenset({EOS})
    return EngineRequest("r", **(fields | changes))  # type: ignore[arg-type]


def row_masks(
    masks: StepMasks, spec: EngineRequest, matchers: tuple[Matcher, ...], *drafts: int
) -> RowMasks:
    request = Request(spec, 0, 0.0, matchers)
    draws = tuple(request.samples)
    chunk = Chunk(draws[0], 0, 1 + len(drafts), 1 + len(drafts), draws, drafts)
    finish = masks.begin(StepPlan((chunk,)))
    assert finish is not None
    found = finish()
    return found.collect(found) if isinstance(found, FollowedRows) else found


def allowed(found: RowMasks, row: int = 0) -> list[int]:
    bits = np.unpackbits(found.allowed[row].view(np.uint8), bitorder="little")[:SIZE]
    return [int(token) for token in bits.nonzero()[0]]


def follow(matcher: Matcher, text: str) -> FinishReason | None:
    for value in text.encode():
        assert matcher.ended is None
        matcher.advance(value)
    return matcher.ended


async def test_only_tokens_that_can_follow_are_allowed(
    grammars: AnyGrammars, masks: StepMasks
) -> None:
    spec = ask(Constraint("regex", "a[bc]+"))
    matchers = await grammars.matchers(spec)
    first = row_masks(masks, spec, matchers)

    assert allowed(first) == [ord("a"), TOKENS.index(b"ab"), TOKENS.index(b"abc")]
    assert first.ends == {}


async def test_stop_tokens_are_allowed_where_the_grammar_may_end(
    grammars: AnyGrammars, masks: StepMasks
) -> None:
    spec = ask(Constraint("regex", "ab*"))
    matchers = await grammars.matchers(spec)
    assert EOS not in allowed(row_masks(masks, spec, matchers))

    follow(matchers[0], "a")
    assert allowed(row_masks(masks, spec, matchers)) == [ord("b"), EOS]
    free_of_stops = ask(Constraint("regex", "ab*"), stop_token_ids=frozenset())
    others = await grammars.matchers(free_of_stops)
    follow(others[0], "a")
    assert allowed(row_masks(masks, free_of_stops, others)) == [ord("b")]


async def test_a_stop_token_of_plain_text_may_not_cut_the_answer_short(
    grammars: AnyGrammars, masks: StepMasks
) -> None:
    spec = ask(Constraint("regex", "[ab]c"), stop_token_ids=frozenset({ord("a")}))
    matchers = await grammars.matchers(spec)

    assert ord("a") not in allowed(row_masks(masks, spec, matchers))


async def test_stop_tokens_wait_for_min_tokens_but_a_complete_answer_ends(
    grammars: AnyGrammars, masks: StepMasks
) -> None:
    spec = ask(Constraint("regex", "ab?"), min_tokens=9)
    matchers = await grammars.matchers(spec)
    follow(matchers[0], "a")

    assert allowed(row_masks(masks, spec, matchers)) == [ord("b")]
    assert follow(matchers[0], "b") is FinishReason.STOP


async def test_an_empty_answer_ends_without_a_draw(grammars: AnyGrammars, masks: StepMasks) -> None:
    spec = ask(Constraint("choice", options=("",)), stop_token_ids=frozenset())
    found = row_masks(masks, spec, await grammars.matchers(spec))

    assert found.ends == {0: FinishReason.STOP}
    assert len(allowed(found)) == SIZE  # the row stays finite; nobody looks at what it draws


async def test_a_matcher_that_gave_up_ends_its_sample_as_constraint(
    grammars: AnyGrammars, masks: StepMasks
) -> None:
    spec = ask(Constraint("regex", "ab"))
    matchers = await grammars.matchers(spec)

    assert follow(matchers[0], "x") is FinishReason.CONSTRAINT
    assert row_masks(masks, spec, matchers).ends == {0: FinishReason.CONSTRAINT}


async def test_each_draft_has_its_own_mask_and_leaves_no_trace(
    grammars: AnyGrammars, masks: StepMasks
) -> None:
    spec = ask(Constraint("regex", "[a-c]{3}"))
    matchers = await grammars.matchers(spec)
    drafts = tuple(b"abc")
    together = row_masks(masks, spec, matchers, *drafts)

    for row, draft in enumerate(drafts):
        assert allowed(together, row) == allowed(row_masks(masks, spec, matchers))
        matchers[0].advance(draft)
    assert matchers[0].ended is FinishReason.STOP


async def test_a_sample_that_ends_while_another_goes_on_leaves_the_rest_alone(
    grammars: AnyGrammars, masks: StepMasks
) -> None:
    spec = ask(Constraint("choice", options=("a", "bc")), n=2, stop_token_ids=frozenset())
    matchers = await grammars.matchers(spec)
    row_masks(masks, spec, matchers)
    for matcher, token in zip(matchers, b"ab", strict=True):
        matcher.advance(token)
    found = row_masks(masks, spec, matchers)

    assert matchers[0].ended is FinishReason.STOP
    assert found.ends == {0: FinishReason.STOP}
    assert allowed(found, 1) == [ord("c")]


async def test_both_interfaces_of_the_library_allow_the_same_tokens() -> None:
    spec = ask(Constraint("json_schema", json.dumps(SCHEMA)))
    words = Vocabulary(TOKENS)
    compiled, collected = kernel_parts(words)
    ways = [Grammars(words, SIZE, 2, LibraryCompiler), compiled]
    known = [Masks(SIZE), collected]
    draws = random.Random(3)
    matchers = [await way.matchers(spec) for way in ways]
    while matchers[0][0].ended is None:
        found = [row_masks(mask, spec, pair) for mask, pair in zip(known, matchers, strict=True)]
        assert allowed(found[0]) == allowed(found[1])
        assert found[0].ends == found[1].ends
        token = draws.choice([t for t in allowed(found[0]) if t != EOS])
        for (matcher,) in matchers:
            matcher.advance(token)
    assert matchers[1][0].ended is matchers[0][0].ended
    for part in (*ways, *known):
        part.close()


async def test_drafts_are_permitted_up_to_the_first_that_breaks_the_rule(
    grammars: AnyGrammars,
) -> None:
    spec = ask(Constraint("regex", "[0-9]{2}x"))
    request = Request(spec, 0, 0.0, await grammars.matchers(spec))

    assert list(request.samples[0].permitted(tuple(b"12y"))) == list(b"12")
    assert follow(request.samples[0].matcher, "34x") is FinishReason.STOP  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(10))
async def test_tokens_are_foreseen_only_where_nothing_else_may_follow(
    grammars: AnyGrammars, masks: StepMasks, seed: int
) -> None:
    spec, rng = ask(Constraint("json_schema", json.dumps(SCHEMA))), random.Random(seed)
    (matcher,) = await grammars.matchers(spec)
    matcher.advance(ord("{"))
    foreseen: list[int] = []
    while matcher.ended is None:
        ahead = list(matcher.foreseen(3))
        may_follow = allowed(row_masks(masks, spec, (matcher,)))
        assert len(ahead) <= 3
        assert matcher.permitted(ahead) == len(ahead)
        assert not ahead or may_follow == ahead[:1]
        foreseen += ahead[:1]
        matcher.advance(rng.choice(may_follow))

    assert foreseen  # of "ab", at least its last character
    assert not matcher.foreseen(3)


@pytest.mark.parametrize(("speculation", "ahead"), [(None, b"cd"), (True, b"cd"), (False, b"")])
async def test_nobody_looks_ahead_for_a_request_without_speculation(
    grammars: AnyGrammars, masks: StepMasks, speculation: bool | None, ahead: bytes
) -> None:
    spec = ask(Constraint("choice", options=("xycd",)), speculation=speculation)
    (matcher,) = await grammars.matchers(spec)
    for value in b"xy":
        assert allowed(row_masks(masks, spec, (matcher,))) == [value]
        matcher.advance(value)

    assert bytes(list(matcher.foreseen(3))) == ahead


async def test_samples_follow_a_constraint_independently(
    grammars: AnyGrammars, masks: StepMasks
) -> None:
    spec = ask(Constraint("choice", options=("no", "yes")), n=2)
    matchers = await grammars.matchers(spec)
    follow(matchers[0], "n")
    found = row_masks(masks, spec, matchers)

    assert found.rows == [0, 1]
    assert allowed(found, 0) == [ord("o")]
    assert allowed(found, 1) == [ord("n"), ord("y")]


async def test_a_resumed_sample_starts_behind_what_it_said(
    grammars: AnyGrammars, masks: StepMasks
) -> None:
    emitted = [list(b"ye"), [], list(b"no")]
    spec = ask(Constraint("choice", options=("no", "yes")), n=3, emitted=emitted)
    matchers = await grammars.matchers(spec)

    assert [matcher.ended for matcher in matchers] == [None, None, FinishReason.STOP]
    assert allowed(row_masks(masks, spec, matchers)) == [ord("s")]


async def test_emitted_tokens_that_break_the_rule_are_refused(grammars: AnyGrammars) -> None:
    with pytest.raises(InvalidRequest, match="emitted token 1") as caught:
        await grammars.matchers(ask(Constraint("regex", "ab"), emitted=[list(b"ax")]))

    assert caught.value.field == "resume.choices"


BAD = [
    Constraint("json_schema", "{"),
    Constraint("json_schema", '"text"'),
    Constraint("json_schema", '{"const": NaN}'),
    Constraint("json_schema", '{"type": "wish"}'),
    Constraint("json_schema", '{"uniqueItems": true, "type": "array"}'),
    Constraint("json_schema", '{"$ref": "#/$defs/nowhere"}'),
    Constraint("json_schema", "[" * 100_000),
    Constraint("regex", "a("),
    Constraint("regex", "(?=look)ahead"),
    Constraint("grammar", "start: nobody"),
    Constraint("grammar", ""),
    Constraint("choice"),
    Constraint("regex", "a" * 300_000),
]


@pytest.mark.parametrize("constraint", BAD, ids=lambda c: f"{c.kind} {c.text[:20]}")
async def test_what_cannot_be_compiled_is_the_callers_mistake(
    grammars: AnyGrammars, constraint: Constraint
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await grammars.matchers(ask(constraint))

    assert caught.value.field == f"constraint.{constraint.kind}"
    assert len(caught.value.message) < 500


async def test_a_kind_that_nobody_knows_is_not_supported(grammars: AnyGrammars) -> None:
    with pytest.raises(NotSupported, match="'wish'"):
        await grammars.matchers(ask(Constraint("wish")))


async def test_without_a_vocabulary_nothing_can_be_constrained() -> None:
    grammars = Grammars(None, SIZE, 2, LibraryCompiler)
    with pytest.raises(NotSupported, match="vocabulary"):
        await grammars.matchers(ask(Constraint("json_object")))
    grammars.close()


async def test_too_many_constraints_in_line_are_refused() -> None:
    grammars = Grammars(Vocabulary(TOKENS), SIZE, 0, LibraryCompiler)
    with pytest.raises(Overloaded):
        await grammars.matchers(ask(Constraint("json_object")))
    grammars.close()


async def test_a_constraint_is_compiled_once_and_forgotten_in_the_end(
    grammars: AnyGrammars,
) -> None:
    def known() -> list[str]:
        return [constraint.text for constraint in grammars._compiled]

    for number in (*range(70), 10):
        await grammars.matchers(ask(Constraint("regex", f"a{number}")))

    assert known() == [*(f"a{i}" for i in range(6, 70) if i != 10), "a10"]


async def test_white_space_in_json_is_bounded(grammars: AnyGrammars) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
    matchers = await grammars.matchers(ask(Constraint("json_schema", json.dumps(schema))))
    follow(matchers[0], "{")

    assert matchers[0].permitted(list(b" " * 100)) == 32


def test_forced_bytes_are_cut_as_the_tokenizer_cuts_them() -> None:
    cut = Cutter(Vocabulary(TOKENS, lambda text: list(text.encode())))

    assert cut("abc") == list(b"abc")
    assert Cutter(Vocabulary(TOKENS))("abctrue") == [
        TOKENS.index(b"abc"),
        TOKENS.index(b"true"),
    ]


def test_a_tokenizer_that_adds_a_space_is_not_believed() -> None:
    cut = Cutter(Vocabulary(TOKENS, lambda text: [ord(" "), *text.encode()]))

    assert cut(b"ab") == [TOKENS.index(b"ab")]


def test_cutting_stops_at_a_byte_that_no_token_has() -> None:
    assert Cutter(Vocabulary([b"a", b"b"]))("abxa") == [0, 1]
