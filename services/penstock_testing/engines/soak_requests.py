"""Random requests of every kind an engine takes, and what their answers must be like.

Owns the mixture: lengths, shared beginnings, priorities, samples, constraints, sampling, resumes,
speculation, adapters, and who is aborted when. Knows no engine; ``soak`` runs them.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from penstock_engine.api import Constraint, EngineRequest, FinishReason, Priority, Sampling

_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
}
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_OPTIONS = ("yes", "no", "perhaps")
_CONSTRAINTS = (
    Constraint("json_schema", json.dumps(_SCHEMA)),
    Constraint("json_object"),
    Constraint("regex", _DATE),
    Constraint("choice", options=_OPTIONS),
    Constraint("grammar", 'start: "a" ("," "b")*'),
)


class Fate(Enum):
    """How a request ends."""

    FINISH = "finished"
    ABORT = "aborted"
    ABORT_SAMPLE = "one sample aborted"
    CLOSE = "closed by its caller"


@dataclass(frozen=True, slots=True)
class Errand:
    """A request and what becomes of it after ``after`` outputs."""

    request: EngineRequest
    fate: Fate = Fate.FINISH
    after: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What requests may be: prompts from ``documents``, within ``context`` tokens, for ``adapters``."""

    documents: Sequence[Sequence[int]]
    context: int
    vocab_size: int
    stop_tokens: frozenset[int]
    adapters: tuple[str, ...] = ()
    max_prompt: int = 400
    max_tokens: int = 64


class RequestMaker:
    """Draws requests; the same seed draws the same ones."""

    def __init__(self, bounds: Bounds, seed: str) -> None:
        self._bounds = bounds
        self._random = random.Random(seed)
        self._seed = seed
        self._count = 0

    def errand(self) -> Errand:
        """Any request with any fate."""
        rng, request = self._random, self.request()
        if rng.random() < 0.1 and request.constraint is None:
            request = replace(request, emitted=self._emitted(request))
        fate = rng.choices(tuple(Fate), (75, 10, 5, 10))[0]
        return Errand(request, fate, rng.randrange(12))

    def request(self) -> EngineRequest:
        """A request that starts afresh and whose answer is determined by it."""
        rng, bounds = self._random, self._bounds
        self._count += 1
        constraint = rng.choice(_CONSTRAINTS) if rng.random() < 0.25 else None
        max_tokens = rng.choice((0, 1, 2, *range(8, bounds.max_tokens, 8), bounds.max_tokens))
        adapter = rng.choice(("", *bounds.adapters))
        return EngineRequest(
            f"{self._seed}-{self._count}",
            self._prompt(),
            max_tokens,
            self._sampling(),
            stop_token_ids=bounds.stop_tokens,
            min_tokens=min(rng.choice((0, 0, 0, 3)), max_tokens) if constraint is None else 0,
            n=rng.choice((1, 1, 1, 1, 2, 3)),
            logprobs=rng.choice((None, None, None, 0, 3)),
            priority=rng.choice(tuple(Priority)),
            chain_start=hash_of(adapter),
            adapter=adapter,
            constraint=constraint,
            speculation=rng.choice((None, None, True, False)),
        )

    def impossible(self) -> EngineRequest:
        """A request longer than the context, which must be refused at once."""
        return replace(self.request(), max_tokens=self._bounds.context + 1, emitted=())

    def _prompt(self) -> list[int]:
        """The beginning of a document, so that prefixes are shared, and mostly some tokens of its own."""
        rng, bounds = self._random, self._bounds
        document = rng.choice(bounds.documents)
        size = rng.choice((1, 31, 32, 33, 64, rng.randrange(1, bounds.max_prompt)))
        own = [rng.randrange(bounds.vocab_size) for _ in range(rng.choice((0, 0, 1, 5, 40)))]
        return [*document[:size], *own]

    def _sampling(self) -> Sampling:
        rng = self._random
        plain = Sampling(temperature=rng.choice((0.0, 0.0, 0.7, 1.0)), seed=rng.randrange(1 << 32))
        return rng.choice(
            (
                plain,
                plain,
                plain,
                replace(plain, top_p=0.9, top_k=50),
                replace(plain, min_p=0.05),
                replace(plain, frequency_penalty=0.3, presence_penalty=0.2),
                replace(plain, repetition_penalty=1.1, logit_bias={5: 2.0, 9: -100.0}),
            )
        )

    def _emitted(self, request: EngineRequest) -> list[list[int]]:
        rng, vocab = self._random, self._bounds.vocab_size
        sizes = [rng.randrange(request.max_tokens + 1) for _ in range(request.n)]
        return [[rng.randrange(vocab) for _ in range(size)] for size in sizes]


def hash_of(adapter: str) -> int:
    """A start of the hash chain for each adapter."""
    return 1 + sum(adapter.encode())


def complaint(
    request: EngineRequest, tokens: Sequence[int], finish: FinishReason, text: Callable[[], str]
) -> str | None:
    """What is wrong with a sample's whole answer, if something is."""
    if len(tokens) > request.max_tokens:
        return f"{len(tokens)} tokens, and {request.max_tokens} were asked for"
    if finish is FinishReason.LENGTH and len(tokens) < request.max_tokens:
        return f"ended for its length at {len(tokens)} of {request.max_tokens} tokens"
    if finish is FinishReason.CONSTRAINT:
        return "its constraint could not be followed"
    if request.constraint is None or finish is not FinishReason.STOP:
        return None
    return None if _follows(request.constraint, text()) else f"{text()!r} breaks its constraint"


def _follows(constraint: Constraint, text: str) -> bool:
    match constraint.kind:
        case "json_schema" | "json_object":
            return isinstance(json.loads(text), dict)
        case "regex":
            return re.fullmatch(constraint.text, text) is not None
        case "choice":
            return text in constraint.options
        case _:
            return re.fullmatch("a(,b)*", text) is not None
