"""What is known of a batch: write-once facts, and their JSON form.

Each fact is one object, put only if absent: the first writer wins and nothing is ever changed.
A batch's state is the fold of its facts (``penstock_batch.state.fold``). This module knows neither the
object store nor the wire.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeAlias

SCHEMA = 1

CREATED = "created"
PLANNED = "planned"
CANCEL = "cancel"
OUTCOME = "outcome"
_SHARD = "shard-"


class Ending(StrEnum):
    """How a batch can end."""

    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens used, summed over answered lines."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        """The sum, field by field."""
        return Tokens(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


NO_TOKENS = Tokens()


@dataclass(frozen=True, slots=True)
class Costs:
    """What answered lines took of workers, in seconds, and its price; no currency, no price."""

    amount: float = 0.0
    currency: str = ""
    prefill_s: float = 0.0
    decode_s: float = 0.0

    def __add__(self, other: "Costs") -> "Costs":
        """The sum; a fleet has one currency."""
        return Costs(
            self.amount + other.amount,
            self.currency or other.currency,
            self.prefill_s + other.prefill_s,
            self.decode_s + other.decode_s,
        )


NO_COSTS = Costs()


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an input file. ``line`` counts from 1; None is the whole file."""

    code: str
    message: str
    param: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """Somebody asked for a batch. Times are Unix seconds; ``trace`` is the submitter's carrier."""

    at: float
    tenant: str
    input_file_id: str
    endpoint: str
    window_s: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    trace: Mapping[str, str] = field(default_factory=dict)

    @property
    def expires(self) -> float:
        """When the window closes."""
        return self.at + self.window_s


@dataclass(frozen=True, slots=True)
class Planned:
    """The input was valid and is cut into shards, stored under ``prefix``.

    ``digest`` covers every line's place: which shard answers it and whose answer it shares.
    """

    at: float
    prefix: str
    shards: int
    lines: int
    deduplicated: int
    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A shard's answers are stored and final.

    ``object_name`` is empty if it has none. ``closed`` means that the batch was stopped before
    every line of the shard was answered. Counts include lines that share an answer.
    """

    at: float
    shard: int
    object_name: str = ""
    sha256: str = ""
    completed: int = 0
    failed: int = 0
    usage: Tokens = NO_TOKENS
    closed: bool = False
    cost: Costs = NO_COSTS


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody asked to stop."""

    at: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The batch is over. File ids are empty where there is no such file."""

    at: float
    ending: Ending
    output_file_id: str = ""
    error_file_id: str = ""
    completed: int = 0
    failed: int = 0
    problems: tuple[Problem, ...] = ()


Fact: TypeAlias = Created | Planned | ShardDone | CancelRequested | Outcome

_KINDS: dict[str, type[Fact]] = {
    CREATED: Created,
    PLANNED: Planned,
    "shard": ShardDone,
    CANCEL: CancelRequested,
    OUTCOME: Outcome,
}
_KIND_OF = {cls: kind for kind, cls in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one batch at one moment."""

    created: Created | None = None
    planned: Planned | None = None
    cancel: CancelRequested | None = None
    outcome: Outcome | None = None
    shards: Mapping[int, ShardDone] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Iterable[Fact]) -> "Facts":
        """Gather facts in the order of their writing: of each, the first one counts."""
        single: dict[type[Fact], Any] = {}
        shards: dict[int, ShardDone] = {}
        for fact in facts:
            if isinstance(fact, ShardDone):
                shards.setdefault(fact.shard, fact)
            else:
                single.setdefault(type(fact), fact)
        return cls(
            single.get(Created),
            single.get(Planned),
            single.get(CancelRequested),
            single.get(Outcome),
            shards,
        )

    def missing_shards(self) -> list[int]:
        """Planned shards that are not done, in order."""
        count = self.planned.shards if self.planned else 0
        return [k for k in range(count) if k not in self.shards]


def name_of(fact: Fact) -> str:
    """The name that makes a fact unique within its batch."""
    return shard_name(fact.shard) if isinstance(fact, ShardDone) else _KIND_OF[type(fact)]


def shard_name(shard: int) -> str:
    """The name of a shard's fact."""
    return f"{_SHARD}{shard:05d}"


def encode(fact: Fact) -> bytes:
    """A fact as one JSON object that says its kind and schema."""
    body = {"schema": SCHEMA, "kind": _KIND_OF[type(fact)], **asdict(fact)}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def decode(raw: bytes) -> Fact:
    """Read a fact. Fields that a later version added are left out.

    Raises:
        ValueError: not a fact, or one of a later, incompatible schema.
    """
    try:
        body = json.loads(raw)
        if body["schema"] > SCHEMA:
            raise ValueError(f"a fact of schema {body['schema']}; this code knows up to {SCHEMA}")
        cls = _KINDS[body["kind"]]
        known = {f.name for f in fields(cls)}
        values = {k: _value(k, v) for k, v in body.items() if k in known}
        return cls(**values)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a fact: {error!r}") from error


def _value(name: str, value: Any) -> Any:
    if name == "usage":
        return Tokens(**value)
    if name == "cost":
        return Costs(**value)
    if name == "problems":
        return tuple(Problem(**problem) for problem in value)
    return Ending(value) if name == "ending" else value
