"""One sample: what of the engine's outputs is sent, and what ends it."""

from pathlib import Path

import pytest

from penstock.common.v1 import tokens_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.blocks import pack_tokens, unpack_tokens
from penstock_engine.api import FinishReason, Logprob, TokenOut
from penstock_testing.engines.models import BYTE_EOS, write_byte_tokenizer
from penstock_text.tokenizer import Tokenizer
from penstock_worker.generation.sample import Ends, Sample

STOP = generate_pb2.FINISH_REASON_STOP
LENGTH = generate_pb2.FINISH_REASON_LENGTH


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.load(write_byte_tokenizer(tmp_path))


def ends(
    *strings: str, token_ids: frozenset[int] = frozenset(), min_tokens: int = 0, **flags: bool
) -> Ends:
    known = {"sends_logprobs": False, "ranks": False, "keeps_text": True} | flags
    return Ends(strings, token_ids, min_tokens, max_tokens=10, **known)


def out(
    position: int,
    text: str | bytes,
    finish: FinishReason | None = None,
    matched: int | None = None,
) -> TokenOut:
    ids = list(text.encode() if isinstance(text, str) else text)
    logprobs = [Logprob(token, -0.5) for token in ids]
    return TokenOut(0, position, ids, logprobs, finish, matched)


def deltas(sample: Sample) -> list[tuple[int, list[int], str]]:
    return [
        (m.delta.first_position, unpack_tokens(m.delta.tokens.ids), m.delta.text)
        for m in sample.messages()
        if m.HasField("delta")
    ]


def choice(text: str, chars: int, **fields: object) -> generate_pb2.ChoiceState:
    emitted = tokens_pb2.TokenIds(ids=pack_tokens(list(text.encode())))
    return generate_pb2.ChoiceState(emitted=emitted, emitted_chars=chars, **fields)  # type: ignore[arg-type]


def test_only_what_is_new_is_sent(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends())

    sample.take(out(0, "a"))
    sample.take(out(1, "b"))
    first = deltas(sample)
    sample.take(out(2, "c"))

    assert first == [(0, [97, 98], "ab")]
    assert deltas(sample) == [(2, [99], "c")]
    assert deltas(sample) == []


def test_tokens_are_sent_even_while_their_text_is_held_back(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends("stop"))

    sample.take(out(0, "st"))
    held = deltas(sample)
    sample.take(out(2, "a", FinishReason.LENGTH))

    assert held == [(0, [115, 116], "")]
    assert deltas(sample) == [(2, [97], "sta")]


def test_a_stop_string_ends_it_before_the_engine_does(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends("!"))

    must_abort = sample.take(out(0, "hi!xx"))
    ignored = sample.take(out(5, "more"))

    assert (must_abort, ignored) == (True, False)
    assert sample.text == "hi"
    assert sample.finished is not None
    assert (sample.finished.reason, sample.finished.matched_string) == (STOP, "!")
    assert sample.finished.completion_tokens == 3
    assert deltas(sample) == [(0, list(b"hi!"), "hi")]


def test_a_stop_string_in_the_last_output_needs_no_abort(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends("!"))

    assert not sample.take(out(0, "hi!", FinishReason.LENGTH))
    assert sample.finished is not None
    assert sample.finished.reason == STOP


def test_no_stop_string_counts_before_min_tokens(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends("!", min_tokens=4))

    assert not sample.take(out(0, "a!b"))
    assert sample.take(out(3, "!"))
    assert sample.text == "a!b"


@pytest.mark.parametrize(("asked", "named"), [({BYTE_EOS}, True), (set(), False)])
def test_the_stop_token_is_named_only_if_the_caller_asked_for_it(
    tokenizer: Tokenizer, asked: set[int], named: bool
) -> None:
    sample = Sample(0, tokenizer, ends(token_ids=frozenset(asked)))

    sample.take(out(0, "", FinishReason.STOP, BYTE_EOS))

    assert sample.finished is not None
    assert sample.finished.reason == STOP
    assert sample.finished.HasField("matched_token_id") == named


def test_a_character_cut_by_the_end_is_replaced(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends())

    sample.take(out(0, "é".encode()[:1], FinishReason.LENGTH))

    assert deltas(sample) == [(0, [0xC3], "\ufffd")]


def test_log_probabilities_travel_with_their_tokens(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends("!", sends_logprobs=True))

    sample.take(out(0, "ab!c"))
    messages = sample.messages()

    assert [p.token_bytes for p in messages[0].delta.logprobs] == [b"a", b"b", b"!"]
    assert messages[1].finished.cumulative_logprob == pytest.approx(-1.5)


def test_a_resumed_sample_continues_tokens_and_text(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends("stop"))

    sample.resume(choice("abst", chars=2, cumulative_logprob=-4.0), list(b"abst"))
    before = deltas(sample)
    sample.take(out(4, "x", FinishReason.LENGTH))

    assert before == []
    assert deltas(sample) == [(4, [120], "stx")]
    assert (sample.num_tokens, sample.num_new_tokens) == (5, 1)
    assert sample.cumulative_logprob == pytest.approx(-4.5)


def test_text_that_had_not_reached_the_client_is_sent_on_resume(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends())

    sample.resume(choice("abc", chars=1), list(b"abc"))

    assert deltas(sample) == [(3, [], "bc")]


def test_half_a_character_is_completed_by_the_next_attempt(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends())
    smile = "😀".encode()

    sample.resume(generate_pb2.ChoiceState(emitted_chars=0), smile[:2])
    sample.take(out(2, smile[2:]))

    assert deltas(sample) == [(2, list(smile[2:]), "😀")]


@pytest.mark.parametrize(("text", "reason"), [("a!", STOP), ("0123456789", LENGTH)])
def test_a_sample_that_had_ended_says_so_and_nothing_else(
    tokenizer: Tokenizer, text: str, reason: generate_pb2.FinishReason.ValueType
) -> None:
    sample = Sample(0, tokenizer, ends("!"))

    sample.resume(choice(text, chars=len(text.rstrip("!"))), list(text.encode()))

    (message,) = sample.messages()
    assert message.finished.reason == reason


def test_a_sample_whose_end_the_client_saw_is_silent(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends())

    sample.resume(choice("ab", chars=2, finish_reason=STOP), list(b"ab"))

    assert sample.finished is not None
    assert sample.messages() == []


def test_long_held_outputs_are_sent_in_parts(tokenizer: Tokenizer) -> None:
    sample = Sample(0, tokenizer, ends(ranks=True))
    for position in range(0, 3000, 100):
        sample.take(out(position, "x" * 100))

    parts = deltas(sample)

    assert [first for first, _, _ in parts] == [0, 1024, 2048]
    assert "".join(text for _, _, text in parts) == "x" * 3000
