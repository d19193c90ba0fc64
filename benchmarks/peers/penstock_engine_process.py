"""Penstock's native engine as an engine's process, through ``Engine.generate``.

    python penstock_engine_process.py CHECKPOINT {none,int8} THREADS

The engine is what a worker would host: scheduler, prefix cache and sampling included.
"""

import os
import sys

# Before torch: what a worker sets as well.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import asyncio
from collections.abc import Sequence
from pathlib import Path

from protocol import Load, Run, serve

from penstock_engine.api import EngineRequest, Sampling, TokenOut
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings


class Served:
    """A started engine and the loop it lives on."""

    def __init__(self, engine: NativeEngine) -> None:
        self._engine = engine
        self._runner = asyncio.Runner()
        self._runner.run(engine.start())
        self._count = 0

    def run(self, load: Load) -> list[list[int]]:
        """Serve a load."""
        return self._runner.run(self._all(load))

    async def _all(self, load: Load) -> list[list[int]]:
        return await asyncio.gather(*(self._one(p, load.new_tokens) for p in load.prompts))

    async def _one(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        self._count += 1
        greedy = Sampling(temperature=0.0)
        request = EngineRequest(f"bench-{self._count}", prompt, new_tokens, greedy)
        tokens: list[int] = []
        async for output in self._engine.generate(request):
            if isinstance(output, TokenOut):
                tokens += output.token_ids
        return tokens


def _start() -> Run:
    checkpoint, quantization, threads = sys.argv[1:4]
    settings = NativeSettings(
        Path(checkpoint),
        dtype="bfloat16",
        quantization=quantization,
        kv_memory_bytes=2 << 30,
        threads=int(threads),
        device="cpu",
    )
    engine = NativeEngine(settings)
    print(engine.info().device, file=sys.stderr)
    return Served(engine).run


if __name__ == "__main__":
    serve(_start)
