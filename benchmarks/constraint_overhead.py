"""What structured output costs: the same decoding free and under constraints, in turns.

The constraints never end within an answer, so all ways compute the same number of steps. Ratios within
one run are what counts; each way counts with its fastest turn, since neighbours only slow.

    python benchmarks/constraint_overhead.py [--streams 1 16] [--model DIR] [--json]
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from penstock_engine.api import Constraint, EngineRequest, Sampling, TokenOut
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_engine.native.structured.vocabulary import Vocabulary
from penstock_models import DEMO
from penstock_text.tokenizer import Tokenizer

PROMPT_TOKENS, NEW_TOKENS = 64, 96
OWN_TEXT = Path(__file__).read_text(encoding="utf-8")
_NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 500}
WAYS = {
    "free": None,
    "regex": Constraint("regex", r"[\s\S]{4000}"),
    "json_schema": Constraint("json_schema", json.dumps(_NUMBERS)),
}


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of a step of so many streams, and how many times those of free decoding."""

    way: str
    streams: int
    step_s: float
    of_free: float


async def step_s(
    engine: NativeEngine, constraint: Constraint | None, prompts: Sequence[Sequence[int]], turn: str
) -> float:
    """Seconds a step once all have their first tokens."""

    async def one(index: int, prompt: Sequence[int]) -> tuple[float, float]:
        request = EngineRequest(
            f"{turn}-{index}", prompt, NEW_TOKENS, Sampling(temperature=0.0), constraint=constraint
        )
        times = [
            time.perf_counter() async for o in engine.generate(request) if isinstance(o, TokenOut)
        ]
        return times[0], times[-1]

    ends = await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts)))
    return (max(last for _, last in ends) - max(first for first, _ in ends)) / (NEW_TOKENS - 1)


async def run(options: argparse.Namespace) -> list[Row]:
    """Measure all ways in turns, after one turn to warm up."""
    tokenizer = Tokenizer.load(options.model)
    tokens = [tokenizer.text_bytes(i) for i in range(tokenizer.vocab_size)]
    words = Vocabulary(tokens, partial(tokenizer.encode, add_special_tokens=False))
    engine = NativeEngine(NativeSettings(options.model, max_batch=max(options.streams)), words)
    await engine.start()
    text = tokenizer.encode(OWN_TEXT)
    rows: list[Row] = []
    try:
        for streams in options.streams:
            prompts = [text[i : i + PROMPT_TOKENS] for i in range(streams)]
            least = dict.fromkeys(WAYS, float("inf"))
            for turn in range(options.repeats + 1):
                for way, constraint in WAYS.items():
                    sys.stderr.write(f"\r{streams} streams, turn {turn} of {options.repeats} ")
                    seconds = await step_s(engine, constraint, prompts, f"{turn}-{way}")
                    least[way] = min(least[way], seconds) if turn else least[way]
            rows += [Row(way, streams, s, s / least["free"]) for way, s in least.items()]
    finally:
        sys.stderr.write("\n")
        await engine.close()
    return rows


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = asyncio.run(run(options))
    if options.json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
        return
    for row in rows:
        sys.stdout.write(
            f"{row.streams:3} streams, {row.way:12} {row.step_s * 1e6:8.0f} us a step "
            f"({row.of_free:.3f} of free)\n"
        )


if __name__ == "__main__":
    main()
