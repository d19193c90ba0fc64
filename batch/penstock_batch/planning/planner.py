"""Cuts a batch's lines into shards. Pure: lines in, shards out, the same ones every time.

Identical deterministic lines are run once and share the answer. The others are sorted by their
serialized prompt, which walks the prefix tree depth first, so that each shard is a contiguous
part of it and its lines find one another's prefixes in the cache.
Source: llm-d's batch gateway sorts by system prompt; BlendServe (arXiv 2411.16102) by the tree.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from penstock_batch.planning.validator import InputLine

MIN_SHARD_LINES = 1
MAX_SHARD_LINES = 256
# Prompts that agree further than this are neighbours in any order.
_KEY_CHARS = 8192


@dataclass(frozen=True, slots=True)
class Work:
    """One request to run. Its answer is also that of the ``twins``."""

    line: InputLine
    twins: tuple[InputLine, ...] = ()

    @property
    def lines(self) -> tuple[InputLine, ...]:
        """Every line that it answers."""
        return (self.line, *self.twins)


@dataclass(frozen=True, slots=True)
class Plan:
    """Shards of a batch; every line is in exactly one of them, once."""

    shards: tuple[tuple[Work, ...], ...]
    lines: int
    deduplicated: int
    model: str

    def digest(self) -> str:
        """Digest of every line's place: which shard answers it and whose answer it shares."""
        places = [[[line.number for line in work.lines] for work in shard] for shard in self.shards]
        return hashlib.sha256(json.dumps(places).encode()).hexdigest()


def make_plan(lines: Sequence[InputLine], shard_lines: int) -> Plan:
    """Cut valid lines into shards of at most ``shard_lines`` requests to run."""
    works = sorted(_deduplicated(lines), key=lambda w: (_prefix_key(w.line.body), w.line.number))
    # Cut evenly: a last shard of one line would cost as much overhead as a full one.
    count = -(-len(works) // shard_lines)
    bounds = [i * len(works) // count for i in range(count + 1)] if count else [0]
    shards = [tuple(works[a:b]) for a, b in pairwise(bounds)]
    models = {str(line.body["model"]) for line in lines}
    return Plan(
        shards=tuple(shards),
        lines=len(lines),
        deduplicated=len(lines) - len(works),
        model=models.pop() if len(models) == 1 else "",
    )


def is_deterministic(body: Mapping[str, Any]) -> bool:
    """Whether equal bodies must give equal answers: greedy or seeded, one sample; or vectors."""
    if "input" in body:
        return True
    one = body.get("n") in (None, 1) and body.get("best_of") in (None, 1)
    temperature = body.get("temperature")
    greedy = isinstance(temperature, (int, float)) and temperature == 0
    return one and (greedy or body.get("seed") is not None)


def _deduplicated(lines: Sequence[InputLine]) -> list[Work]:
    groups: dict[object, list[InputLine]] = {}
    for line in lines:
        key: object = line.number
        if is_deterministic(line.body):
            key = hashlib.sha256(_canonical(line.body).encode()).digest()
        groups.setdefault(key, []).append(line)
    return [Work(first, tuple(rest)) for first, *rest in groups.values()]


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _prefix_key(body: Mapping[str, Any]) -> str:
    """The prompt as text, in the order in which the model reads it, under the model's name."""
    prompt = body.get("prompt", body.get("messages", body.get("input")))
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    tools = json.dumps(body["tools"], ensure_ascii=False) if body.get("tools") else ""
    return f"{body['model']}\0{tools}\0{text}"[:_KEY_CHARS]
