"""What speculation gains: the same Python code continued by engines that differ in nothing else.

Code is what drafts are for, so prompts are cut from modules of the standard library that the demo
model was not trained on. Kinds take turns within each repeat, so that a machine's moods hit all.
"""

import asyncio
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from penstock_engine.api import Engine, EngineRequest, RequestDone, Sampling, TokenOut

Tell = Callable[[str], None]

PLAIN = "none"
HELD_OUT = ("calendar", "dataclasses", "glob", "mailbox")
"""Modules the demo model never saw; its card lists all of them."""

_LEAST_PROMPTS = 8


@dataclass(frozen=True, slots=True)
class SpeculationLoad:
    """Greedy continuations; ``batches`` are how many run at once."""

    batches: tuple[int, ...] = (1, 16)
    prompt_tokens: int = 256
    new_tokens: int = 128
    repeats: int = 3


@dataclass(frozen=True, slots=True)
class SpeculationRow:
    """One kind at one batch size; medians over the repeats. ``speedup`` is over no speculation."""

    kind: str
    batch: int
    tokens_per_s: float
    speedup: float
    drafted_tokens: int
    accepted_tokens: int


def code_prompts(encode: Callable[[str], Sequence[int]], load: SpeculationLoad) -> list[list[int]]:
    """Prompts of equal length from the held-out modules, enough for the largest batch, evenly spread."""
    tokens: list[int] = []
    for name in HELD_OUT:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            tokens += encode(Path(found.origin).read_text(encoding="utf-8"))
    count, size = max(*load.batches, _LEAST_PROMPTS), load.prompt_tokens
    stride = max((len(tokens) - size) // count, 1)
    return [tokens[i * stride : i * stride + size] for i in range(count)]


async def measure_speculation(
    engines: Mapping[str, Engine],
    prompts: Sequence[Sequence[int]],
    load: SpeculationLoad,
    tell: Tell,
) -> tuple[SpeculationRow, ...]:
    """Measure started engines by kind, ``none`` among them; ``tell`` hears which part runs."""
    rows: list[SpeculationRow] = []
    for batch in load.batches:
        asked = prompts[: max(batch, _LEAST_PROMPTS)]
        tell(f"speculation, batch of {batch}")
        for engine in engines.values():  # what drafts cost and whether they stand is learnt here
            await _round(engine, asked, batch, load.new_tokens)
        rounds = [
            {
                kind: await _round(engine, asked, batch, load.new_tokens)
                for kind, engine in engines.items()
            }
            for _ in range(load.repeats)
        ]
        rows += [_row(kind, batch, rounds) for kind in engines]
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class _Round:
    tokens_per_s: float
    drafted: int
    accepted: int


def _row(kind: str, batch: int, rounds: Sequence[Mapping[str, _Round]]) -> SpeculationRow:
    mine = [results[kind] for results in rounds]
    return SpeculationRow(
        kind=kind,
        batch=batch,
        tokens_per_s=median(one.tokens_per_s for one in mine),
        # Each against its neighbour in time: ratios within one repeat, and the median of those.
        speedup=median(r[kind].tokens_per_s / r[PLAIN].tokens_per_s for r in rounds),
        drafted_tokens=mine[-1].drafted,
        accepted_tokens=mine[-1].accepted,
    )


async def _round(
    engine: Engine, prompts: Sequence[Sequence[int]], batch: int, new_tokens: int
) -> _Round:
    """All prompts, ``batch`` at a time; the time counts from each group's first token to its last."""
    tokens, seconds = 0, 0.0
    dones: list[RequestDone] = []
    for at in range(0, len(prompts), batch):
        group = prompts[at : at + batch]
        runs = await asyncio.gather(
            *(_run(engine, f"{batch}-{at + i}", p, new_tokens) for i, p in enumerate(group))
        )
        tokens += sum(count for count, _, _, _ in runs) - len(runs)
        seconds += max(last for _, _, last, _ in runs) - min(first for _, first, _, _ in runs)
        dones += [done for _, _, _, done in runs]
    drafted = sum(done.drafted_tokens for done in dones)
    accepted = sum(done.accepted_draft_tokens for done in dones)
    return _Round(tokens / seconds if seconds else 0.0, drafted, accepted)


async def _run(
    engine: Engine, name: str, prompt: Sequence[int], new_tokens: int
) -> tuple[int, float, float, RequestDone]:
    """Tokens, times of the first and the last, and the end."""
    request = EngineRequest(name, prompt, new_tokens, Sampling(temperature=0.0))
    tokens, first_s, last_s, done = 0, 0.0, 0.0, None
    # The contract lets any iterator be closed early; its type does not say so.
    async with aclosing(engine.generate(request)) as outputs:  # type: ignore[type-var]
        async for output in outputs:
            if isinstance(output, TokenOut) and output.token_ids:
                last_s = time.perf_counter()
                first_s = first_s or last_s
                tokens += len(output.token_ids)
            elif isinstance(output, RequestDone):
                done = output
    assert done is not None
    return tokens, first_s, last_s, done
