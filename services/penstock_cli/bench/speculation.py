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
from itertools import product
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
    """Continuations, greedy and drawn; ``batches`` are how many run at once."""

    batches: tuple[int, ...] = (1, 16)
    temperatures: tuple[float, ...] = (0.0, 0.8)
    prompt_tokens: int = 256
    new_tokens: int = 128
    repeats: int = 3


@dataclass(frozen=True, slots=True)
class SpeculationRow:
    """One kind at one batch size; medians over the repeats.

    ``speedup`` is over no speculation by the clock, ``cpu_speedup`` by this process's CPU time, which
    busy neighbours change less.
    """

    kind: str
    batch: int
    temperature: float
    tokens_per_s: float
    speedup: float
    cpu_speedup: float
    drafted_tokens: int
    accepted_tokens: int
    model: str = ""


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
    for batch, temperature in product(load.batches, load.temperatures):
        asked = prompts[: max(batch, _LEAST_PROMPTS)]
        crowd = _Crowd(batch, temperature, load.new_tokens)
        tell(f"speculation, batch of {batch}, temperature {temperature}")
        for engine in engines.values():  # what drafts cost and whether they stand is learnt here
            await _round(engine, asked, crowd)
        rounds = []
        for repeat in range(load.repeats):
            results: dict[str, _Round] = {kind: _Round() for kind in engines}
            for at in range(0, len(asked), batch):  # short turns: neighbours in time compare best
                order = list(engines) if (at // batch + repeat) % 2 else list(engines)[::-1]
                for kind in order:
                    results[kind] += await _round(engines[kind], asked[at : at + batch], crowd)
            rounds.append(results)
        rows += [_row(kind, crowd, rounds) for kind in engines]
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class _Crowd:
    """How many run at once, and how they draw how many tokens."""

    batch: int
    temperature: float
    new_tokens: int


@dataclass(frozen=True, slots=True)
class _Round:
    tokens: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: "_Round") -> "_Round":
        return _Round(
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            self.cpu_s + other.cpu_s,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
        )

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.tokens / self.cpu_s if self.cpu_s else 0.0


def _row(kind: str, crowd: _Crowd, rounds: Sequence[Mapping[str, _Round]]) -> SpeculationRow:
    mine = [results[kind] for results in rounds]
    pairs = [(results[kind], results[PLAIN]) for results in rounds]
    return SpeculationRow(
        kind=kind,
        batch=crowd.batch,
        temperature=crowd.temperature,
        tokens_per_s=median(one.tokens_per_s for one in mine),
        # Each against its neighbour in time: ratios within one repeat, and the median of those.
        speedup=median(one.tokens_per_s / plain.tokens_per_s for one, plain in pairs),
        cpu_speedup=median(
            _ratio(one.tokens_per_cpu_s, plain.tokens_per_cpu_s) for one, plain in pairs
        ),
        drafted_tokens=mine[-1].drafted,
        accepted_tokens=mine[-1].accepted,
    )


def _ratio(one: float, other: float) -> float:
    return one / other if other else 1.0


async def _round(engine: Engine, prompts: Sequence[Sequence[int]], crowd: _Crowd) -> _Round:
    """All prompts, a batch at a time; the time counts from each group's first token to its last."""
    found = _Round()
    for at in range(0, len(prompts), crowd.batch):
        group = prompts[at : at + crowd.batch]
        cpu_s = time.process_time()
        runs = await asyncio.gather(
            *(_run(engine, f"{crowd.batch}-{i}", prompt, crowd) for i, prompt in enumerate(group))
        )
        found += _Round(
            sum(count for count, _, _, _ in runs) - len(runs),
            max(last for _, _, last, _ in runs) - min(first for _, first, _, _ in runs),
            time.process_time() - cpu_s,
            sum(done.drafted_tokens for _, _, _, done in runs),
            sum(done.accepted_draft_tokens for _, _, _, done in runs),
        )
    return found


async def _run(
    engine: Engine, name: str, prompt: Sequence[int], crowd: _Crowd
) -> tuple[int, float, float, RequestDone]:
    """Tokens, times of the first and the last, and the end."""
    sampling = Sampling(temperature=crowd.temperature, seed=1)
    request = EngineRequest(name, prompt, crowd.new_tokens, sampling)
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
