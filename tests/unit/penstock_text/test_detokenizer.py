"""Incremental detokenizing: what is held back, what is released, which stop string ended it."""

import time
from pathlib import Path

import pytest

from penstock_testing.engines.models import write_byte_tokenizer
from penstock_text.detokenizer import IncrementalDetokenizer
from penstock_text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.load(write_byte_tokenizer(tmp_path))


def test_half_a_character_waits_for_the_other_half(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer)

    texts = [detokenizer.push([byte]).text for byte in "a😀".encode()]

    assert texts == ["a", "", "", "", "😀"]


def test_a_character_that_never_ends_is_replaced_at_the_end(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer)

    assert detokenizer.push([0xF0, 0x9F]).text == ""
    assert detokenizer.flush() == "\ufffd"


def test_text_that_may_begin_a_stop_is_released_once_it_does_not(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, ["END"])

    texts = [detokenizer.push(list(part)).text for part in (b"x E", b"N", b"x", b"EN")]

    assert texts == ["x ", "", "ENx", ""]
    assert detokenizer.flush() == "EN"


def test_the_stop_is_named_and_not_part_of_the_text(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, ["\n\n", "STOP"])

    piece = detokenizer.push(list(b"one STOP two"))

    assert (piece.text, piece.matched_stop) == ("one ", "STOP")
    assert piece.num_tokens == len(b"one STOP")
    assert detokenizer.push(list(b"more")).text == ""
    assert detokenizer.flush() == ""


def test_of_overlapping_stops_the_first_complete_one_wins(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, ["abcd", "bc"])

    piece = detokenizer.push(list(b"xabcd"))

    assert (piece.text, piece.matched_stop) == ("xa", "bc")


def test_stops_do_not_count_while_disarmed(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, ["aa"])

    early = detokenizer.push(list(b"aa"), armed=False)
    late = detokenizer.push(list(b"ba"))
    end = detokenizer.push(list(b"a"))

    assert early.text + late.text + end.text == "aab"
    assert end.matched_stop == "aa"


def test_a_stop_may_begin_while_disarmed_and_end_armed(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, ["ab"])

    early = detokenizer.push(list(b"xa"), armed=False)
    late = detokenizer.push(list(b"b"))

    assert (early.text, late.text, late.matched_stop) == ("x", "", "ab")


def test_cost_of_a_token_does_not_grow_with_the_text(tokenizer: Tokenizer) -> None:
    def seconds(count: int) -> float:
        detokenizer = IncrementalDetokenizer(tokenizer, ["aaaaaaab"] * 3)
        started = time.process_time()
        for _ in range(count):
            detokenizer.push([0x61])
        return time.process_time() - started

    small = min(seconds(2_000) for _ in range(3))

    assert min(seconds(20_000) for _ in range(3)) < 30 * small
