"""An engine's four numbers by batch, and what its prefix cache saves; no gRPC, no router.

Ratios within one run are what counts; absolute times are the machine's.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from statistics import mean, median

from penstock_cli.bench.speculation import SpeculationRow
from penstock_engine.api import Engine, EngineRequest, RequestDone, Sampling, TokenOut

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What the engine is given: prompts of random tokens, greedy, never ended by a stop token."""

    batches: tuple[int, ...] = (1, 2, 4, 8)
    prompt_tokens: int = 256
    new_tokens: int = 64
    repeats: int = 3
    seed: int = 1


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One batch size; medians over the repeats. Times in seconds, rates in tokens a second."""

    batch: int
    ttft_s: float
    tpot_s: float
    decode_tokens_per_s: float
    prefill_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class CacheRow:
    """A prompt whose prefix is cached against one whose is not; medians over the repeats."""

    prompt_tokens: int
    cached_tokens: int
    ttft_off_s: float
    ttft_on_s: float

    @property
    def speedup(self) -> float:
        """How many times sooner the first token comes."""
        return self.ttft_off_s / self.ttft_on_s if self.ttft_on_s else 0.0


@dataclass(frozen=True, slots=True)
class EngineBench:
    """Everything that was measured."""

    engine: str
    device: str
    load: EngineLoad
    batches: tuple[BatchRow, ...]
    cache: CacheRow
    speculation: tuple[SpeculationRow, ...] = ()


@dataclass(frozen=True, slots=True)
class _Run:
    ttft_s: float
    tpot_s: float
    tokens: int
    done: RequestDone


async def measure(engine: Engine, load: EngineLoad, tell: Tell) -> EngineBench:
    """Measure a started engine; ``tell`` hears which part runs."""
    bench = _Bench(engine, load)
    tell("warming up")
    await bench.batch_row(1)
    rows = []
    for batch in load.batches:
        tell(f"batch of {batch}")
        rows.append(await bench.batch_row(batch))
    tell("prefix cache")
    cache = await bench.cache_row()
    info = engine.info()
    return EngineBench(info.engine, info.device, load, tuple(rows), cache)


class _Bench:
    def __init__(self, engine: Engine, load: EngineLoad) -> None:
        self._engine = engine
        self._load = load
        self._random = random.Random(load.seed)
        self._count = 0

    async def batch_row(self, batch: int) -> BatchRow:
        """Fresh prompts at once, several times over."""
        rounds = [await self._round(batch) for _ in range(self._load.repeats)]
        runs = [run for _, group in rounds for run in group]
        computed = sum(run.done.computed_prompt_tokens for run in runs)
        prefill_s = sum(run.done.prefill_s for run in runs)
        return BatchRow(
            batch=batch,
            ttft_s=median(run.ttft_s for run in runs),
            tpot_s=median(run.tpot_s for run in runs),
            decode_tokens_per_s=median(
                sum(run.tokens for run in group) / seconds for seconds, group in rounds
            ),
            prefill_tokens_per_s=computed / prefill_s if prefill_s else 0.0,
        )

    async def cache_row(self) -> CacheRow:
        """Each fresh prompt once cold and once more, when all its full blocks are cached."""
        pairs = []
        for _ in range(self._load.repeats):
            prompt = self._prompt()
            pairs.append((await self._run(prompt), await self._run(prompt)))
        return CacheRow(
            prompt_tokens=self._load.prompt_tokens,
            cached_tokens=round(mean(hot.done.cached_tokens for _, hot in pairs)),
            ttft_off_s=median(cold.ttft_s for cold, _ in pairs),
            ttft_on_s=median(hot.ttft_s for _, hot in pairs),
        )

    async def _round(self, batch: int) -> tuple[float, list[_Run]]:
        prompts = [self._prompt() for _ in range(batch)]
        started_s = time.perf_counter()
        runs = await asyncio.gather(*(self._run(prompt) for prompt in prompts))
        return time.perf_counter() - started_s, runs

    def _prompt(self) -> list[int]:
        vocabulary = self._engine.info().vocab_size
        return [self._random.randrange(vocabulary) for _ in range(self._load.prompt_tokens)]

    async def _run(self, prompt: Sequence[int]) -> _Run:
        self._count += 1
        request = EngineRequest(
            f"bench-{self._count}", prompt, self._load.new_tokens, Sampling(temperature=0.0)
        )
        tokens, first_s, last_s, done = 0, 0.0, 0.0, None
        started_s = time.perf_counter()
        # The contract lets any iterator be closed early; its type does not say so.
        async with aclosing(self._engine.generate(request)) as outputs:  # type: ignore[type-var]
            async for output in outputs:
                if isinstance(output, TokenOut) and output.token_ids:
                    last_s = time.perf_counter() - started_s
                    first_s = first_s or last_s
                    tokens += len(output.token_ids)
                elif isinstance(output, RequestDone):
                    done = output
        assert done is not None
        return _Run(first_s, (last_s - first_s) / max(tokens - 1, 1), tokens, done)
