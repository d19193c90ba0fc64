"""Majority votes."""

import pytest

from penstock_worker.generation.vote import Vote, majority


def test_case_and_white_space_make_no_other_answer() -> None:
    assert majority(["Paris", " paris\n", "Rome"]) == Vote(0, "paris", 2, 3)


def test_the_first_of_equally_frequent_answers_wins() -> None:
    assert majority(["b", "a", "a", "b"]).answer == "b"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (['{"x": 1}', '{"x": 2}', '{"x": 2, "y": 0}'], Vote(1, "2", 2, 3)),
        (['{"x": {"b": 1, "a": 2}}', '{"x": {"a": 2, "b": 1}}'], Vote(0, '{"a": 2, "b": 1}', 2, 2)),
        (['{"x": "Yes"}', '{"x": " yes"}', "no JSON", '{"y": 1}', "[1]"], Vote(0, "yes", 2, 2)),
        (["nothing", "of", "use"], Vote(0, "", 0, 0)),
    ],
)
def test_a_field_of_structured_answers_can_be_voted_on(texts: list[str], expected: Vote) -> None:
    assert majority(texts, field="x") == expected
