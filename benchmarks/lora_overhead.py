"""What adapters cost: decoding with none, one, several, and beside unadapted requests.

Makes a random checkpoint and random adapters of all seven modules, so that nothing has to be
downloaded, and runs the ways to use them in turns: ratios within one run are what counts.

    python benchmarks/lora_overhead.py --rank 16 --streams 16 [--kernel eager] [--json]
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from penstock_core.blocks import chain_start
from penstock_engine.api import EngineRequest, Sampling, TokenOut
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_testing.engines.adapters import write_adapter
from penstock_testing.engines.checkpoints import write_checkpoint

SHAPE = {
    "vocab_size": 8192, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "eos_token_id": 8191,
}  # fmt: skip
PROMPT_TOKENS, NEW_TOKENS, NUM_ADAPTERS = 128, 64, 4


@dataclass(frozen=True, slots=True)
class Row:
    """A way to use adapters: medians, and tokens a second as a share of those without any."""

    name: str
    streams: int
    decode_tokens_per_s: float
    share_of_base: float
    ttft_s: float


def ways(streams: int) -> dict[str, list[str]]:
    """The adapter of each stream, empty for none."""
    several = [f"a{i % NUM_ADAPTERS}" for i in range(streams)]
    return {
        "none": [""] * streams,
        "one adapter": ["a0"] * streams,
        f"{NUM_ADAPTERS} adapters": several,
        "every other one": [name if i % 2 else "" for i, name in enumerate(several)],
    }


async def decode(engine: NativeEngine, adapters: Sequence[str], turn: int) -> tuple[float, float]:
    """Tokens a second of all streams once the first tokens are there; the median TTFT."""
    began = time.perf_counter()

    async def one(index: int, adapter: str) -> tuple[float, float]:
        start = chain_start(engine.info().model_revision, f"turn {turn}", adapter)
        prompt = [(7 * index + 13 * i * i + turn) % 8000 for i in range(PROMPT_TOKENS)]
        request = EngineRequest(
            f"{turn}-{index}", prompt, NEW_TOKENS, Sampling(temperature=0.0),
            chain_start=start, adapter=adapter,
        )  # fmt: skip
        times = [
            time.perf_counter() async for o in engine.generate(request) if isinstance(o, TokenOut)
        ]
        return times[0] - began, times[-1] - began

    ends = await asyncio.gather(*(one(index, adapter) for index, adapter in enumerate(adapters)))
    seconds = max(last for _, last in ends) - max(first for first, _ in ends)
    return len(adapters) * (NEW_TOKENS - 1) / seconds, median(first for first, _ in ends)


async def measure(engine: NativeEngine, streams: int, repeats: int) -> list[Row]:
    """All ways in turns, after one turn to warm up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways(streams)}
    for turn in range(repeats + 1):
        for number, (name, adapters) in enumerate(ways(streams).items()):
            sys.stderr.write(f"\rturn {turn} of {repeats}: {name:20}")
            result = await decode(engine, adapters, 10 * turn + number)
            found[name] += [result] if turn else []
    sys.stderr.write("\n")
    rates = {name: median(rate for rate, _ in results) for name, results in found.items()}
    return [
        Row(name, streams, rates[name], rates[name] / rates["none"], median(t for _, t in results))
        for name, results in found.items()
    ]


async def run(options: argparse.Namespace) -> list[Row]:
    """Make what is measured, measure, and leave nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder, "model"), SHAPE)
        for index in range(NUM_ADAPTERS):
            path = Path(folder, "adapters", f"a{index}")
            write_adapter(path, model, rank=options.rank, seed=index)
        settings = NativeSettings(
            model, dtype=options.dtype, kernel=options.kernel, device=options.device,
            quantization=options.quantization, adapters=Path(folder, "adapters"),
        )  # fmt: skip
        engine = NativeEngine(settings)
        await engine.start()
        sys.stderr.write(f"{engine.info().device}\n")
        try:
            return [
                row
                for streams in options.streams
                for row in await measure(engine, streams, options.repeats)
            ]
        finally:
            await engine.close()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = asyncio.run(run(options))
    if options.json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
        return
    for row in rows:
        sys.stdout.write(
            f"{row.streams:3} streams, {row.name:16} {row.decode_tokens_per_s:8.0f} tokens/s "
            f"({row.share_of_base:.2f} of none), TTFT {row.ttft_s * 1000:.0f} ms\n"
        )


if __name__ == "__main__":
    main()
