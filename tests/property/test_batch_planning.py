"""Whatever the file: each of its lines is in exactly one shard once, or the file is refused."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock_batch.planning.planner import make_plan
from penstock_batch.planning.records import dump_work, load_work
from penstock_batch.planning.validator import MAX_PROBLEMS, InputLine, check_input

URL = "/v1/completions"
PROMPTS = st.text("ab \n\u2028é", max_size=4)
BODIES = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "n"]), "prompt": PROMPTS},
    optional={"temperature": st.sampled_from([0, 1]), "seed": st.integers(0, 1), "n": st.just(2)},
)


def numbered(bodies: list[dict[str, Any]]) -> list[InputLine]:
    return [InputLine(n, f"id-{n}", body) for n, body in enumerate(bodies, 1)]


@given(st.lists(BODIES, min_size=1, max_size=60), st.integers(1, 9))
def test_every_line_is_answered_exactly_once(bodies: list[dict[str, Any]], size: int) -> None:
    lines = numbered(bodies)
    plan = make_plan(lines, size)
    placed = [line for shard in plan.shards for work in shard for line in work.lines]
    assert sorted(placed, key=lambda line: line.number) == lines
    assert all(0 < len(shard) <= size for shard in plan.shards)
    assert plan.lines == len(lines)


@given(st.lists(BODIES, min_size=1, max_size=60), st.integers(1, 9))
def test_lines_share_an_answer_only_if_they_ask_the_same(
    bodies: list[dict[str, Any]], size: int
) -> None:
    for shard in make_plan(numbered(bodies), size).shards:
        for work in shard:
            assert all(twin.body == work.line.body for twin in work.twins)
            if work.twins:
                assert work.line.body.get("n") is None


@given(st.lists(BODIES, min_size=1, max_size=60), st.integers(1, 9))
def test_shards_follow_one_another_in_the_order_of_prefixes(
    bodies: list[dict[str, Any]], size: int
) -> None:
    shards = make_plan(numbered(bodies), size).shards
    order = [(w.line.body["model"], w.line.body["prompt"]) for shard in shards for w in shard]
    assert order == sorted(order)


@given(st.lists(BODIES, min_size=1, max_size=30), st.integers(1, 9))
def test_a_plan_survives_its_stored_form(bodies: list[dict[str, Any]], size: int) -> None:
    for shard in make_plan(numbered(bodies), size).shards:
        assert load_work(dump_work(shard)) == list(shard)


@given(st.lists(st.one_of(BODIES, st.binary(max_size=20)), max_size=30))
def test_a_file_is_taken_whole_or_refused_with_the_number_of_each_bad_line(
    contents: list[dict[str, Any] | bytes],
) -> None:
    raw = [
        json.dumps({"custom_id": f"i{n}", "method": "POST", "url": URL, "body": body}).encode()
        if isinstance(body, dict)
        else body.replace(b"\n", b" ") + b"!"
        for n, body in enumerate(contents, 1)
    ]
    bad = [n for n, body in enumerate(contents, 1) if not isinstance(body, dict)]
    checked = check_input(b"\n".join(raw), URL)
    if bad or not contents:
        assert checked.lines == ()
        assert [problem.line for problem in checked.problems] == bad or contents == []
    else:
        assert checked.problems == ()
        assert [line.body for line in checked.lines] == contents


@given(st.binary(max_size=200))
def test_no_bytes_at_all_break_the_validator(data: bytes) -> None:
    checked = check_input(data, URL)
    assert bool(checked.lines) != bool(checked.problems)
    assert len(checked.problems) <= MAX_PROBLEMS
