"""Lines of the objects between planner, runner and finalizer: a shard's work, a shard's answers.

One JSON object a line. Knows neither the store nor RPC.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from penstock_batch.planning.planner import Work
from penstock_batch.planning.validator import InputLine


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one line. ``result`` is the line of the output or the error file."""

    number: int
    custom_id: str
    is_error: bool
    result: dict[str, object]


def dump_work(works: Iterable[Work]) -> bytes:
    """A shard's work as JSONL; twins carry no body, it is the same."""
    return b"".join(
        to_json(
            {
                "line": work.line.number,
                "custom_id": work.line.custom_id,
                "body": work.line.body,
                "twins": [[twin.number, twin.custom_id] for twin in work.twins],
            }
        )
        + b"\n"
        for work in works
    )


def load_work(data: bytes) -> list[Work]:
    """Read what ``dump_work`` wrote."""
    works = []
    for raw in data.splitlines():
        record = json.loads(raw)
        body = record["body"]
        line = InputLine(record["line"], record["custom_id"], body)
        twins = tuple(InputLine(number, name, body) for number, name in record["twins"])
        works.append(Work(line, twins))
    return works


def dump_answers(answers: Iterable[Answer]) -> bytes:
    """A shard's answers as JSONL, by line number."""
    return b"".join(
        to_json(
            {
                "line": answer.number,
                "custom_id": answer.custom_id,
                "is_error": answer.is_error,
                "result": answer.result,
            }
        )
        + b"\n"
        for answer in sorted(answers, key=lambda a: a.number)
    )


def load_answers(data: bytes) -> Iterator[Answer]:
    """Read what ``dump_answers`` wrote."""
    for raw in data.splitlines():
        record = json.loads(raw)
        yield Answer(record["line"], record["custom_id"], record["is_error"], record["result"])


def to_json(value: Any) -> bytes:
    """Compact UTF-8 JSON without a line end."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
