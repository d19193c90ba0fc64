"""What int8 weights cost in quality: bits per byte of text the demo model never saw.

    python benchmarks/int8_quality.py [--kilobytes 200] [--json]

The text is the standard library's held-out modules, split as in training. Each file is coded by
itself in windows that overlap by half, through the engine's own runner, once with each setting.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from penstock_core.telemetry import logs
from penstock_engine.api import EngineRequest
from penstock_engine.native.execution.runner import Runner
from penstock_engine.native.loading import draw_up, load_runner
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Request
from penstock_engine.native.settings import NativeSettings
from penstock_models import DEMO
from penstock_text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from demo_model.corpus import load_corpus

CONTEXT = 512
FRESH = CONTEXT // 2
VARIANTS = (
    ("float32", "none", "eager"),
    ("float32", "none", "auto"),
    ("bfloat16", "none", "auto"),
    ("bfloat16", "int8", "auto"),
    ("float32", "int8", "eager"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument(
        "--kilobytes", type=int, default=200, help="thousands of characters; 0: all"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logs.configure("int8-quality")
    tokenizer = Tokenizer.load(options.model)
    texts = list(_some(load_corpus().held_out, options.kilobytes * 1000))
    num_bytes = sum(len(text.encode()) for text in texts)
    files = [[0, *tokenizer.encode(text)] for text in texts]
    rows = []
    for dtype, quantization, kernel in VARIANTS:
        plan = draw_up(
            NativeSettings(
                options.model,
                dtype=dtype,
                quantization=quantization,
                kernel=kernel,
                device="cpu",
                kv_blocks=CONTEXT // 32 + 1,
            )
        )
        runner = load_runner(plan)
        bits = sum(_bits(runner, file) for file in files) / num_bytes
        rows.append({"computed": str(plan.compute), "bits_per_byte": round(bits, 4)})
        if not options.json:
            print(f"{rows[-1]['computed']:50} {bits:.4f} bits per byte", flush=True)
    if options.json:
        print(json.dumps({"bytes": num_bytes, "load": os.getloadavg()[0], "rows": rows}))
    return 0


def _some(held_out: dict[str, str], num_bytes: int) -> Iterator[str]:
    """Files in the order of a shuffle that is the same everywhere, up to a size."""
    left = num_bytes or sys.maxsize
    for _, text in sorted(held_out.items(), key=lambda item: item[0][::-1]):
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)


def _bits(runner: Runner, tokens: Sequence[int]) -> float:
    """Cost of a file; every token is counted once, in the first window that holds it."""
    total, counted = 0.0, 1
    while counted < len(tokens):
        end = min(len(tokens), counted + (CONTEXT if counted == 1 else FRESH))
        start = max(0, end - 1 - CONTEXT)
        sample = Request(EngineRequest("quality", tokens[start : end - 1], 1), 0, 0.0).samples[0]
        sample.pages = list(range(CONTEXT // 32 + 1))
        count, fresh = end - 1 - start, end - counted
        with torch.inference_mode():
            logits = runner.logits(StepPlan((Chunk(sample, 0, count, fresh),)))
        truth = torch.tensor(tokens[counted:end])
        total += functional.cross_entropy(logits, truth, reduction="sum").item()
        counted = end
    return total / math.log(2)


if __name__ == "__main__":
    sys.exit(main())
