"""Prompt lookup: the longest and latest match, and what it foretells."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from penstock_engine.speculative.ngram import SIZES, Match, NgramIndex, continuation


def tokens(*ids: int) -> "array[int]":
    return array("I", ids)


def scan(text: "array[int]") -> Match | None:
    """The same by brute force: the longest n-gram that ends the text, where it came last before."""
    for size in SIZES:
        for position in range(len(text) - 1, size - 1, -1):
            if size < len(text) and text[position - size : position] == text[len(text) - size :]:
                return Match(position, size)
    return None


def test_nothing_is_foretold_where_nothing_repeats() -> None:
    assert NgramIndex().find(tokens(1, 2, 3, 4, 5)) is None
    assert NgramIndex().find(tokens(1)) is None
    assert NgramIndex().find(tokens()) is None


def test_the_longest_match_wins() -> None:
    text = tokens(1, 2, 3, 9, 8, 2, 3, 7, 1, 2, 3)

    match = NgramIndex().find(text)

    assert match == Match(3, 3)
    assert continuation(text, match, 2) == (9, 8)


def test_the_latest_of_equal_matches_wins() -> None:
    text = tokens(1, 2, 5, 1, 2, 6, 1, 2)

    match = NgramIndex().find(text)

    assert match is not None
    assert continuation(text, match, 1) == (6,)


def test_a_loop_goes_on_beyond_the_end() -> None:
    text = tokens(7, 8, 9, 7, 8, 9, 7)

    match = NgramIndex().find(text)

    assert match is not None
    assert continuation(text, match, 7) == (8, 9, 7, 8, 9, 7, 8)


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(1, 7), max_size=30))
def test_a_growing_text_finds_what_a_scan_finds(ids: list[int], steps: list[int]) -> None:
    index, end = NgramIndex(), 0
    for step in steps:
        end = min(end + step, len(ids))
        text = array("I", ids[:end])
        assert index.find(text) == scan(text)
