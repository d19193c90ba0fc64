"""Checks a batch's input, line by line, as OpenAI does: all problems at once, with line numbers.

Pure. What a line's body asks for is not looked into (a bad body fails its own line when it runs),
except for what would break the batch as a whole.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from penstock_batch.state.facts import Problem

MAX_LINES = 50_000
MAX_PROBLEMS = 100
# As large as a request to the gateway may be.
MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_CUSTOM_ID_CHARS = 512
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


@dataclass(frozen=True, slots=True)
class InputLine:
    """A valid line. ``number`` counts from 1 and is its identity; ``body`` is parsed JSON."""

    number: int
    custom_id: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Checked:
    """The valid lines, or what is wrong (then nothing is to be run)."""

    lines: tuple[InputLine, ...] = ()
    problems: tuple[Problem, ...] = ()


class _Refused(Exception):
    """One line is wrong."""

    def __init__(self, code: str, message: str, param: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def check_input(data: bytes, endpoint: str) -> Checked:
    """Check a whole file. At most ``MAX_PROBLEMS`` problems are collected."""
    lines: list[InputLine] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for number, raw in _numbered(data):
        if number > MAX_LINES:
            problems.append(
                Problem("too_many_requests", f"The file holds more than {MAX_LINES} lines.")
            )
            break
        try:
            line = _line(number, raw, endpoint, seen)
        except _Refused as refused:
            problems.append(Problem(refused.code, str(refused), refused.param, number))
            if len(problems) >= MAX_PROBLEMS:
                break
            continue
        seen.add(line.custom_id)
        lines.append(line)
    if not lines and not problems:
        problems.append(Problem("empty_file", "The file holds no request."))
    return Checked(problems=tuple(problems)) if problems else Checked(tuple(lines))


def _numbered(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, cut at line feeds only; a byte order mark and the end are forgiven."""
    start, number = 3 if data.startswith(b"\xef\xbb\xbf") else 0, 0
    end = len(data.rstrip())
    while start < end:
        cut = data.find(b"\n", start, end)
        cut = end if cut < 0 else cut
        number += 1
        yield number, data[start:cut]
        start = cut + 1


def _line(number: int, raw: bytes, endpoint: str, seen: set[str]) -> InputLine:
    record = _parsed(raw)
    for name in ("custom_id", "method", "url", "body"):
        if record.get(name) is None:
            raise _Refused(
                "missing_required_parameter", f"Missing required parameter: '{name}'.", name
            )
    custom_id = record["custom_id"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        raise _Refused(
            "invalid_custom_id",
            f"custom_id must be a string of 1 to {MAX_CUSTOM_ID_CHARS} characters.",
            "custom_id",
        )
    if custom_id in seen:
        raise _Refused(
            "duplicate_custom_id",
            "The custom_id of this request is a duplicate of another request's; it must be unique "
            "within a batch.",
            "custom_id",
        )
    if record["method"] != "POST":
        raise _Refused("invalid_method", "The method must be 'POST'.", "method")
    if record["url"] != endpoint:
        raise _Refused(
            "invalid_url",
            f"The URL of this request does not match the batch's endpoint '{endpoint}'.",
            "url",
        )
    return InputLine(number, custom_id, _body(record["body"]))


def _parsed(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE_BYTES:
        raise _Refused("line_too_large", f"This line is longer than {MAX_LINE_BYTES} bytes.")
    try:
        record = json.loads(raw.decode(), parse_constant=_no_constant)
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise _Refused("invalid_utf8", f"This line is not valid UTF-8: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise _Refused(
            "invalid_json_line", f"This line is not parseable as valid JSON: {error}."
        ) from error
    if not isinstance(record, dict):
        raise _Refused("invalid_json_line", "This line is not a JSON object.")
    return record


def _body(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise _Refused("invalid_body", "The body must be a JSON object.", "body")
    model = body.get("model")
    if model is None:
        raise _Refused(
            "missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model"
        )
    if not isinstance(model, str) or not model:
        raise _Refused("invalid_model", "The model must be named by a string.", "body.model")
    if body.get("stream"):
        raise _Refused("invalid_stream", "A batch's request cannot be streamed.", "body.stream")
    return body


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
