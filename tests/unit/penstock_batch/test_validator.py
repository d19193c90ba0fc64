import json
from typing import Any

import pytest

from penstock_batch.planning import validator
from penstock_batch.planning.validator import MAX_PROBLEMS, check_input

URL = "/v1/completions"


def line(**changes: Any) -> bytes:
    record: dict[str, Any] = {
        "custom_id": "a",
        "method": "POST",
        "url": URL,
        "body": {"model": "demo", "prompt": "x"},
    }
    record.update(changes)
    return json.dumps({k: v for k, v in record.items() if v is not ...}).encode()


def only_problem(data: bytes) -> tuple[str, str, int | None]:
    checked = check_input(data, URL)
    assert checked.lines == ()
    (problem,) = checked.problems
    assert problem.message
    return problem.code, problem.param, problem.line


def test_valid_lines_keep_their_numbers_ids_and_bodies() -> None:
    checked = check_input(line(custom_id="a") + b"\n" + line(custom_id="b") + b"\n\n", URL)
    assert checked.problems == ()
    assert [(x.number, x.custom_id) for x in checked.lines] == [(1, "a"), (2, "b")]
    assert checked.lines[0].body == {"model": "demo", "prompt": "x"}


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"{not json", "invalid_json_line", ""),
        (b"[1, 2]", "invalid_json_line", ""),
        (b"", "invalid_json_line", ""),
        (b'{"a": NaN}', "invalid_json_line", ""),
        (b"[" * 100_000, "invalid_json_line", ""),
        (b'{"custom_id": "\xff"}', "invalid_utf8", ""),
        (line(custom_id="\ud800"), "invalid_utf8", ""),
        (line(custom_id=...), "missing_required_parameter", "custom_id"),
        (line(method=...), "missing_required_parameter", "method"),
        (line(url=...), "missing_required_parameter", "url"),
        (line(body=...), "missing_required_parameter", "body"),
        (line(body={"prompt": "x"}), "missing_required_parameter", "body.model"),
        (line(custom_id=7), "invalid_custom_id", "custom_id"),
        (line(custom_id="x" * 513), "invalid_custom_id", "custom_id"),
        (line(custom_id="first"), "duplicate_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/chat/completions"), "invalid_url", "url"),
        (line(body=[1]), "invalid_body", "body"),
        (line(body={"model": 3}), "invalid_model", "body.model"),
        (line(body={"model": "demo", "stream": True}), "invalid_stream", "body.stream"),
    ],
)
def test_a_bad_line_is_reported_with_code_field_and_number(
    raw: bytes, code: str, param: str
) -> None:
    data = b"\n".join([line(custom_id="first"), raw, line(custom_id="last")])
    assert only_problem(data) == (code, param, 2)


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_a_request_is_refused_as_a_whole(data: bytes) -> None:
    assert only_problem(data) == ("empty_file", "", None)


def test_a_byte_order_mark_and_windows_line_ends_are_forgiven() -> None:
    data = b"\xef\xbb\xbf" + line(custom_id="a") + b"\r\n" + line(custom_id="b") + b"\r\n"
    assert [x.custom_id for x in check_input(data, URL).lines] == ["a", "b"]


def test_all_problems_are_collected_up_to_a_cap() -> None:
    some = check_input(b"\n".join([b"x", line(), b"y"]), URL)
    assert [p.line for p in some.problems] == [1, 3]
    many = check_input(b"x\n" * (MAX_PROBLEMS + 50), URL)
    assert len(many.problems) == MAX_PROBLEMS


def test_more_lines_than_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validator, "MAX_LINES", 2)
    data = b"\n".join(line(custom_id=str(i)) for i in range(3))
    assert only_problem(data) == ("too_many_requests", "", None)
