import json

import pytest

from penstock_batch.state.facts import (
    CancelRequested,
    Costs,
    Created,
    Ending,
    Fact,
    Facts,
    Outcome,
    Planned,
    Problem,
    ShardDone,
    Tokens,
    decode,
    encode,
    name_of,
)

EVERY_KIND: list[Fact] = [
    Created(1.5, "acme", "file_1", "/v1/completions", 60, {"k": "v"}, {"traceparent": "00-a"}),
    Planned(2.0, "batches/b/work/p", 3, 20, 4, "demo", "d1"),
    ShardDone(
        3.0,
        7,
        "batches/b/answers/7",
        "abc",
        5,
        1,
        Tokens(1, 2, 3, 4, 5),
        closed=True,
        cost=Costs(0.1, "EUR", 2.0, 3.0),
    ),
    CancelRequested(4.0),
    Outcome(5.0, Ending.FAILED, "", "", 0, 0, (Problem("c", "m", "p", 3), Problem("d", "n"))),
]


@pytest.mark.parametrize("fact", EVERY_KIND, ids=name_of)
def test_every_fact_survives_its_json_form(fact: Fact) -> None:
    assert decode(encode(fact)) == fact


def test_each_fact_has_its_own_name_and_each_shard_too() -> None:
    names = [name_of(fact) for fact in EVERY_KIND]
    assert names == ["created", "planned", "shard-00007", "cancel", "outcome"]


def test_a_fact_tells_its_schema_so_that_a_later_one_is_refused() -> None:
    body = json.loads(encode(CancelRequested(1.0)))
    assert body["schema"] == 1
    with pytest.raises(ValueError, match="schema 2"):
        decode(json.dumps({**body, "schema": 2}).encode())


def test_fields_that_a_later_version_adds_are_left_out() -> None:
    body = json.loads(encode(CancelRequested(1.0)))
    assert decode(json.dumps({**body, "reason": "why not"}).encode()) == CancelRequested(1.0)


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b'{"schema": 1}', b'{"schema":1,"kind":"x"}'])
def test_what_is_no_fact_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a fact"):
        decode(raw)


def test_the_first_of_two_facts_of_a_name_counts() -> None:
    first, second = CancelRequested(1.0), CancelRequested(2.0)
    assert Facts.of([first, second]).cancel == first
    done, again = ShardDone(1.0, 0, "a"), ShardDone(1.0, 0, "b")
    assert Facts.of([done, again]).shards[0].object_name == "a"


def test_tokens_add_up_field_by_field() -> None:
    assert Tokens(1, 2, 3, 4, 5) + Tokens(10, 20, 30, 40, 50) == Tokens(11, 22, 33, 44, 55)
