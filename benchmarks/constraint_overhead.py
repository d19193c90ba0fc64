"""What structured output costs: the same decoding free and under constraints, in turns.

The constraints never end within an answer, so all ways decode as many tokens; where a constraint leaves
no choice, as between the fields of records, several take one step. Each turn has its ratios, since a shared
machine's speed drifts; their medians are what counts. A grammar learns from the answers that used it; with
``--unseen`` each turn has constraints of its own that none did.

    python benchmarks/constraint_overhead.py [--streams 1 16] [--model DIR] [--unseen] [--json]
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
_FIELDS = {
    "identifier": {"type": "integer", "maximum": 999},
    "description": {"type": "string", "maxLength": 8},
    "is_available": {"type": "boolean"},
}
_RECORD = {"type": "object", "properties": _FIELDS, "required": list(_FIELDS)}
_RECORDS = {"type": "array", "items": _RECORD | {"additionalProperties": False}, "minItems": 500}
WAYS = {
    "free": None,
    "regex": Constraint("regex", r"[\s\S]{4000}"),
    "numbers": Constraint("json_schema", json.dumps(_NUMBERS)),
    "records": Constraint("json_schema", json.dumps(_RECORDS)),
}


def unseen(constraint: Constraint | None, turn: int) -> Constraint | None:
    """One that allows the same for as long as an answer is here, and has to be compiled."""
    if constraint is None:
        return None
    text = constraint.text.replace("500", str(501 + turn)).replace("4000", str(4001 + turn))
    return replace(constraint, text=text)


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds that a token of each of so many streams takes, and how many times those of free decoding.

    Both are medians over turns.
    """

    way: str
    streams: int
    token_s: float
    of_free: float


async def token_s(
    engine: NativeEngine, constraint: Constraint | None, prompts: Sequence[Sequence[int]], turn: str
) -> float:
    """Seconds a token once all have their first."""

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
            turns: list[dict[str, float]] = []
            for turn in range(options.repeats + 1):
                sys.stderr.write(f"\r{streams} streams, turn {turn} of {options.repeats} ")
                turns.append(
                    {
                        way: await token_s(engine, constraint, prompts, f"{turn}-{way}")
                        for way, constraint in _ways(options, turn).items()
                    }
                )
            rows += [_row(way, streams, turns[1:]) for way in WAYS]
    finally:
        sys.stderr.write("\n")
        await engine.close()
    return rows


def _ways(options: argparse.Namespace, turn: int) -> dict[str, Constraint | None]:
    return {name: unseen(way, turn) if options.unseen else way for name, way in WAYS.items()}


def _row(way: str, streams: int, turns: Sequence[Mapping[str, float]]) -> Row:
    seconds = statistics.median(turn[way] for turn in turns)
    return Row(way, streams, seconds, statistics.median(turn[way] / turn["free"] for turn in turns))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--unseen", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = asyncio.run(run(options))
    if options.json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
        return
    for row in rows:
        sys.stdout.write(
            f"{row.streams:3} streams, {row.way:12} {row.token_s * 1e6:8.0f} us a token "
            f"({row.of_free:.3f} of free)\n"
        )


if __name__ == "__main__":
    main()
