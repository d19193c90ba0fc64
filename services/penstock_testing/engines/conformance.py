"""What the conformance suite of engines asks with, and how large it makes them.

One suite in ``tests/contract`` runs over every engine; this is what its files share.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TypeVar, cast

from penstock_engine.api import (
    Admitted,
    Engine,
    EngineOutput,
    EngineRequest,
    RequestDone,
    Sampling,
    TokenOut,
)

Out = TypeVar("Out", Admitted, TokenOut, RequestDone)

BLOCK = 32
GREEDY = Sampling(temperature=0.0)
PROMPT = [(7 * i + i * i) % 250 for i in range(75)]


@dataclass(frozen=True, slots=True)
class Size:
    """How large an engine is made."""

    capacity_blocks: int = 64
    max_batch: int = 8
    max_waiting: int = 64
    max_context: int = 512


EngineFactory = Callable[[Size], AbstractAsyncContextManager[Engine]]


@dataclass(slots=True)
class Collected:
    """Everything one request put out."""

    outputs: list[EngineOutput] = field(default_factory=list)

    @property
    def tokens(self) -> dict[int, list[int]]:
        """Output tokens by choice."""
        found: dict[int, list[int]] = {}
        for out in self.of(TokenOut):
            found.setdefault(out.choice_index, []).extend(out.token_ids)
        return found

    @property
    def last(self) -> dict[int, TokenOut]:
        """The last output of each choice."""
        return {out.choice_index: out for out in self.of(TokenOut)}

    @property
    def cached(self) -> int:
        """Prompt tokens whose KV was reused."""
        return self.of(Admitted)[0].cached_tokens

    @property
    def done(self) -> RequestDone:
        """The last output of all."""
        return self.of(RequestDone)[0]

    def of(self, kind: type[Out]) -> list[Out]:
        """Outputs of one kind."""
        return [out for out in self.outputs if isinstance(out, kind)]


async def run(engine: Engine, request: EngineRequest) -> Collected:
    """A request to its end, which must come within a minute."""
    collected = Collected()
    async with asyncio.timeout(60):
        async for output in engine.generate(request):
            collected.outputs.append(output)
    return collected


def stream(engine: Engine, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
    """The outputs as what they are: something that can be closed early."""
    return cast("AsyncGenerator[EngineOutput, None]", engine.generate(request))


def ask(name: str, max_tokens: int = 10, **changes: object) -> EngineRequest:
    """A request that drafts wherever the engine can: nothing of the contract may change by it."""
    fields: dict[str, object] = {"prompt": PROMPT, "sampling": GREEDY, "speculation": True}
    fields |= changes
    return EngineRequest(name, max_tokens=max_tokens, **fields)  # type: ignore[arg-type]
