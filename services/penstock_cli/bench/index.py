"""The routing index by blocks and workers, and what a block costs in memory.

The times are ``penstock_router.bench``'s, which measures the production code.
"""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from penstock_router.bench import Measurement, measure
from penstock_router.index import PrefixIndex

Tell = Callable[[str], None]

_CHAIN_START = 1


@dataclass(frozen=True, slots=True)
class IndexLoad:
    """Every number of blocks with every number of workers, in an index of ``indexed`` blocks more."""

    blocks: tuple[int, ...] = (32, 256, 1024, 8192)
    workers: tuple[int, ...] = (2, 16, 64)
    indexed: int = 100_000
    rounds: int = 20


@dataclass(frozen=True, slots=True)
class IndexBench:
    """Everything that was measured. ``bytes_per_block``: one block that one worker holds."""

    load: IndexLoad
    measurements: tuple[Measurement, ...]
    bytes_per_block: float


def measure_index(load: IndexLoad, tell: Tell) -> IndexBench:
    """Measure; ``tell`` hears which part runs."""
    found: list[Measurement] = []
    for blocks, workers in product(load.blocks, load.workers):
        tell(f"{blocks} blocks, {workers} workers")
        found += measure(blocks, workers, load.indexed, load.rounds)
    tell("memory")
    return IndexBench(load, tuple(found), _bytes_per_block(max(load.blocks)))


def _bytes_per_block(blocks: int) -> float:
    # Hashes as large as real ones, made before the counting starts.
    hashes = [(n + 2) << 40 for n in range(blocks)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        index = PrefixIndex()
        index.store(index.acquire(), _CHAIN_START, hashes)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / blocks
