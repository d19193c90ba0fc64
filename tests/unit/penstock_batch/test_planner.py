from typing import Any

import pytest

from penstock_batch.planning.planner import is_deterministic, make_plan
from penstock_batch.planning.records import Answer, dump_answers, dump_work, load_answers, load_work
from penstock_batch.planning.validator import InputLine


def lines(*bodies: dict[str, Any]) -> list[InputLine]:
    return [
        InputLine(number, f"id-{number}", {"model": "demo", **body})
        for number, body in enumerate(bodies, 1)
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "n": 1}, True),
        ({"seed": 7}, True),
        ({"seed": 0, "temperature": 1}, True),
        ({"input": "x"}, True),
        ({}, False),
        ({"temperature": 0.5}, False),
        ({"temperature": "0"}, False),
        ({"temperature": 0, "n": 2}, False),
        ({"temperature": 0, "best_of": 3}, False),
    ],
)
def test_vectors_and_greedy_or_seeded_single_samples_are_deterministic(
    body: dict[str, Any], expected: bool
) -> None:
    assert is_deterministic(body) is expected


def test_identical_deterministic_lines_are_run_once_and_share_the_answer() -> None:
    same = {"prompt": "x", "temperature": 0}
    plan = make_plan(lines(same, {"prompt": "y"}, dict(reversed(same.items()))), 32)
    works = {work.line.number: work for work in plan.shards[0]}
    assert [twin.number for twin in works[1].twins] == [3]
    assert (plan.lines, plan.deduplicated) == (3, 1)


def test_identical_lines_that_are_sampled_are_each_run() -> None:
    plan = make_plan(lines({"prompt": "x"}, {"prompt": "x"}), 32)
    assert plan.deduplicated == 0
    assert len(plan.shards[0]) == 2


def test_a_shard_is_a_contiguous_part_of_the_prefix_tree() -> None:
    plan = make_plan(lines(*({"prompt": f"{'ab'[i % 2]} {i}"} for i in range(8))), 4)
    first_letters = [{work.line.body["prompt"][0] for work in shard} for shard in plan.shards]
    assert first_letters == [{"a"}, {"b"}]


def test_shards_are_cut_evenly() -> None:
    plan = make_plan(lines(*({"prompt": f"{i:03d}"} for i in range(65))), 64)
    assert sorted(len(shard) for shard in plan.shards) == [32, 33]


def test_the_model_is_named_only_if_it_is_one() -> None:
    assert make_plan(lines({"prompt": "x"}, {"prompt": "y"}), 32).model == "demo"
    assert make_plan(lines({"prompt": "x"}, {"prompt": "y", "model": "b"}), 32).model == ""


def test_the_digest_depends_on_every_lines_place() -> None:
    bodies = [{"prompt": p, "temperature": 0} for p in ("a", "b", "a", "c")]
    assert make_plan(lines(*bodies), 2).digest() == make_plan(lines(*bodies), 2).digest()
    assert make_plan(lines(*bodies), 2).digest() != make_plan(lines(*bodies), 3).digest()


def test_work_survives_its_stored_form() -> None:
    same = {"prompt": "ü\n\u2028", "temperature": 0}
    (shard,) = make_plan(lines(same, same, {"prompt": "z"}), 32).shards
    assert load_work(dump_work(shard)) == list(shard)


def test_answers_are_stored_in_the_order_of_lines() -> None:
    answers = [Answer(n, f"id-{n}", n == 2, {"text": "\u2028ü"}) for n in (3, 1, 2)]
    assert list(load_answers(dump_answers(answers))) == sorted(answers, key=lambda a: a.number)
