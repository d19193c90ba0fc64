"""What speculation costs a batch where it does not pay: paired short rounds, with an interval.

A plain engine, one that speculates by itself and a second plain one answer the same prompts in turns of
random order, in one process. Of each trio the ratios of tokens a second are taken, by the clock and
by this process's CPU time: speculating over both plain ones' mean, and plain over plain, which tells what the
machine's noise looks like. Means of the logarithms, with 95 % intervals from resampled trios.

    python benchmarks/speculation_overhead.py [--batch 16] [--temperature 0.8] [--quantization int8] [--trios 60]
"""

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from penstock_cli.bench.speculation import SpeculationLoad, code_prompts
from penstock_engine.api import EngineRequest, RequestDone, Sampling
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_models import DEMO, DEMO_DRAFT
from penstock_text.tokenizer import Tokenizer

PLAIN, SPECULATING, CONTROL = "plain", "speculating", "plain again"
PROMPT_TOKENS, NEW_TOKENS = 128, 128
WARM_UP, RESAMPLES = 4, 2000


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens a second over those of plain decoding: the mean, and the ends of its interval."""

    who: str
    measure: str
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Round:
    """One batch answered; all answers are equally long, so times compare."""

    clock_s: float
    cpu_s: float
    drafted: int


async def answer(
    engine: NativeEngine, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> Round:
    """Answer all prompts at once."""

    async def one(name: str, prompt: Sequence[int]) -> int:
        request = EngineRequest(name, prompt, NEW_TOKENS, sampling)
        ends = [o async for o in engine.generate(request) if isinstance(o, RequestDone)]
        return ends[0].drafted_tokens

    clock, cpu = time.perf_counter(), time.process_time()
    drafted = await asyncio.gather(*(one(str(i), prompt) for i, prompt in enumerate(prompts)))
    return Round(time.perf_counter() - clock, time.process_time() - cpu, sum(drafted))


async def trios(
    engines: Mapping[str, NativeEngine], options: argparse.Namespace
) -> list[dict[str, Round]]:
    """Rounds by engine; the first few, in which costs are learnt, do not count."""
    load = SpeculationLoad(batches=(options.batch,), prompt_tokens=PROMPT_TOKENS)
    prompts = code_prompts(Tokenizer.load(DEMO).encode, load)[: options.batch]
    draws, found = random.Random(1), []
    for number in range(WARM_UP + options.trios):
        sys.stderr.write(f"\r{number} of {WARM_UP + options.trios} ")
        sampling = Sampling(temperature=options.temperature, seed=number)
        order = draws.sample(list(engines), len(engines))
        found.append({name: await answer(engines[name], prompts, sampling) for name in order})
    sys.stderr.write("\n")
    return found[WARM_UP:]


def rows(found: Sequence[Mapping[str, Round]]) -> list[Row]:
    """Ratios with their intervals."""
    made = []
    for who in (SPECULATING, CONTROL):
        for measure in ("clock_s", "cpu_s"):
            logs = [_log_ratio(trio, who, measure) for trio in found]
            draws = random.Random(2)
            means = sorted(fmean(draws.choices(logs, k=len(logs))) for _ in range(RESAMPLES))
            low, high = means[RESAMPLES // 40], means[-RESAMPLES // 40]
            made.append(Row(who, measure[:-2], *map(math.exp, (fmean(logs), low, high))))
    return made


def _log_ratio(trio: Mapping[str, Round], who: str, measure: str) -> float:
    logs = {name: math.log(getattr(done, measure)) for name, done in trio.items()}
    others = [logs[PLAIN]] if who == CONTROL else [logs[PLAIN], logs[CONTROL]]
    return fmean(others) - logs[who]


async def run(options: argparse.Namespace) -> list[Row]:
    """Start the engines, measure, close them."""
    plain = NativeSettings(
        DEMO, max_batch=options.batch, speculation="none", quantization=options.quantization
    )
    speculating = replace(plain, speculation="auto", draft_model=DEMO_DRAFT)
    engines = {
        PLAIN: NativeEngine(plain),
        SPECULATING: NativeEngine(speculating),
        CONTROL: NativeEngine(plain),
    }
    try:
        for engine in engines.values():
            await engine.start()
        found = await trios(engines, options)
    finally:
        for engine in engines.values():
            await engine.close()
    sys.stderr.write(f"{sum(trio[SPECULATING].drafted for trio in found)} tokens drafted\n")
    return rows(found)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--quantization", choices=("none", "int8"), default="none")
    parser.add_argument("--trios", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measured = asyncio.run(run(options))
    if options.json:
        sys.stdout.write(json.dumps([asdict(row) for row in measured], indent=2) + "\n")
        return
    for row in measured:
        sys.stdout.write(
            f"{row.who:12} by {row.measure:5} {row.ratio:.3f} of plain "
            f"(95 %: {row.low:.3f} to {row.high:.3f})\n"
        )


if __name__ == "__main__":
    main()
