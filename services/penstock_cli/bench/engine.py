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
from typing import TYPE_CHECKING

from penstock_cli.bench.speculation import SpeculationRow
from penstock_engine.api import Engine, EngineRequest, RequestDone, Sampling, TokenOut

if TYPE_CHECKING:
    from penstock_engine.native.ceilings import Ceilings

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SharedLoad:
    """Requests that arrive together with the same beginning."""

    requests: int = 32
    shared_tokens: int = 1024
    own_tokens: int = 32
    new_tokens: int = 32


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What the engine is given: prompts of random tokens, greedy, never ended by a stop token."""

    batches: tuple[int, ...] = (1, 4, 16, 32)
    prompt_tokens: int = 256
    new_tokens: int = 64
    repeats: int = 3
    seed: int = 1
    prefill_tokens: int = 2048
    shared: SharedLoad = SharedLoad()


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
class PrefillRow:
    """One long prompt, alone; median over the repeats."""

    prompt_tokens: int
    ttft_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class SharedRow:
    """Requests with a common beginning, from the first's arrival to the last's end, in seconds.

    ``off_s`` is without sharing: each computes the beginning for itself.
    """

    requests: int
    shared_tokens: int
    own_tokens: int
    new_tokens: int
    off_s: float
    on_s: float

    @property
    def speedup(self) -> float:
        """How many times sooner all are done."""
        return self.off_s / self.on_s if self.on_s else 0.0


@dataclass(frozen=True, slots=True)
class BatchUse:
    """Fractions of the ceilings that a batch used: of reading by its steps, of multiplying by all its tokens.

    A step is as long as a token takes (TPOT); prompts count among the tokens.
    """

    batch: int
    read_fraction: float
    matmul_fraction: float


@dataclass(frozen=True, slots=True)
class MachineRow:
    """What the machine could do, and which fraction of it was used.

    Attributes:
        dtype: that is computed in.
        read_gb_per_s: measured reading ceiling, 1e9 bytes a second.
        matmul_gflops: measured multiplying ceiling, 1e9 operations a second.
        weight_bytes: read by each step.
        batches: fractions of both, by batch size.
        prefill_matmul_fraction: of the multiplying ceiling, by the long prompt.
        shared_matmul_fraction: by the requests that share their beginning, with the cache: what is
            computed once counts once.
    """

    dtype: str
    read_gb_per_s: float
    matmul_gflops: float
    weight_bytes: int
    batches: tuple[BatchUse, ...]
    prefill_matmul_fraction: float
    shared_matmul_fraction: float


@dataclass(frozen=True, slots=True)
class EngineBench:
    """Everything that was measured."""

    engine: str
    device: str
    load: EngineLoad
    batches: tuple[BatchRow, ...]
    cache: CacheRow
    prefill: PrefillRow
    shared: SharedRow
    speculation: tuple[SpeculationRow, ...] = ()
    machine: MachineRow | None = None


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
    tell("long prompt")
    prefill = await bench.prefill_row()
    tell("shared prefix")
    shared = await bench.shared_row()
    info = engine.info()
    return EngineBench(info.engine, info.device, load, tuple(rows), cache, prefill, shared)


def machine_row(bench: EngineBench, ceilings: "Ceilings") -> MachineRow:
    """What was measured of the engine against what the machine can do."""
    load, shared = bench.load, bench.shared
    computed = shared.shared_tokens + shared.requests * (shared.own_tokens + shared.new_tokens)
    with_prompts = (load.prompt_tokens + load.new_tokens) / load.new_tokens
    return MachineRow(
        dtype=ceilings.dtype,
        read_gb_per_s=ceilings.read_bytes_per_s / 1e9,
        matmul_gflops=ceilings.matmul_flops_per_s / 1e9,
        weight_bytes=ceilings.weight_bytes,
        batches=tuple(
            BatchUse(
                row.batch,
                ceilings.read_fraction(1 / row.tpot_s),
                ceilings.matmul_fraction(row.decode_tokens_per_s * with_prompts),
            )
            for row in bench.batches
        ),
        prefill_matmul_fraction=ceilings.matmul_fraction(bench.prefill.tokens_per_s),
        shared_matmul_fraction=ceilings.matmul_fraction(computed / shared.on_s),
    )


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

    async def prefill_row(self) -> PrefillRow:
        """A prompt as long as asked for, or as the context allows."""
        size = min(self._load.prefill_tokens, self._engine.info().max_context_tokens - 1)
        runs = [await self._run(self._prompt(size), 1) for _ in range(self._load.repeats)]
        ttft_s = median(run.ttft_s for run in runs)
        return PrefillRow(size, ttft_s, size / ttft_s)

    async def shared_row(self) -> SharedRow:
        """Fresh beginnings each time; on and off take turns."""
        load = self._load.shared
        room = self._engine.info().max_context_tokens - load.own_tokens - load.new_tokens
        shared = min(load.shared_tokens, room)
        off, on = [], []
        for _ in range(self._load.repeats):
            off.append(await self._together(shared, shares=False))
            on.append(await self._together(shared, shares=True))
        return SharedRow(
            load.requests, shared, load.own_tokens, load.new_tokens, median(off), median(on)
        )

    async def _together(self, shared: int, *, shares: bool) -> float:
        load, beginning = self._load.shared, self._prompt(shared)
        prompts = [[*beginning, *self._prompt(load.own_tokens)] for _ in range(load.requests)]
        started_s = time.perf_counter()
        await asyncio.gather(
            *(
                # A chain of one's own finds nothing and leaves nothing for others to find.
                self._run(prompt, load.new_tokens, chain_start=0 if shares else number + 1)
                for number, prompt in enumerate(prompts)
            )
        )
        return time.perf_counter() - started_s

    async def _round(self, batch: int) -> tuple[float, list[_Run]]:
        prompts = [self._prompt() for _ in range(batch)]
        started_s = time.perf_counter()
        runs = await asyncio.gather(*(self._run(prompt) for prompt in prompts))
        return time.perf_counter() - started_s, runs

    def _prompt(self, size: int | None = None) -> list[int]:
        vocabulary = self._engine.info().vocab_size
        count = self._load.prompt_tokens if size is None else size
        return [self._random.randrange(vocabulary) for _ in range(count)]

    async def _run(
        self, prompt: Sequence[int], new_tokens: int | None = None, chain_start: int = 0
    ) -> _Run:
        self._count += 1
        request = EngineRequest(
            f"bench-{self._count}",
            prompt,
            new_tokens or self._load.new_tokens,
            Sampling(temperature=0.0),
            chain_start=chain_start,
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
