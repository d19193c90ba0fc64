"""Microseconds of the routing index: hash a prompt, match it, store and remove its blocks.

Each prompt hangs on a chain start of its own and is held by every worker to a random depth, so a
match has to find as many depths as there are workers: the hard case. A prompt that only one worker
holds, or nobody, is the easy and most frequent one and is measured beside it.
"""

import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median

from penstock_core.blocks import chain, pack_tokens
from penstock_router.index import PrefixIndex

Tell = Callable[[str], None]

_BLOCK_TOKENS = 32
_VOCABULARY = 32_000


@dataclass(frozen=True, slots=True)
class IndexLoad:
    """Every number of blocks with every number of workers; medians over ``repeats`` prompts."""

    blocks: tuple[int, ...] = (32, 256, 1024, 8192)
    workers: tuple[int, ...] = (2, 16, 64)
    repeats: int = 5
    seed: int = 1


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One cell: times in microseconds for a whole prompt of ``blocks`` blocks."""

    blocks: int
    workers: int
    hash_us: float
    match_us: float
    match_single_us: float
    match_cold_us: float
    store_us: float
    remove_us: float


@dataclass(frozen=True, slots=True)
class IndexBench:
    """Everything that was measured. ``bytes_per_block`` is one block that one worker holds."""

    load: IndexLoad
    rows: tuple[IndexRow, ...]
    bytes_per_block: float


def measure_index(load: IndexLoad, tell: Tell) -> IndexBench:
    """Measure; ``tell`` hears which part runs."""
    rows = []
    for blocks, workers in product(load.blocks, load.workers):
        tell(f"{blocks} blocks, {workers} workers")
        rows.append(_row(load, blocks, workers))
    tell("memory")
    return IndexBench(load, tuple(rows), _bytes_per_block(max(load.blocks), load.seed))


def _row(load: IndexLoad, blocks: int, workers: int) -> IndexRow:
    rng = random.Random(load.seed)
    samples = [_prompt(rng, blocks, workers) for _ in range(load.repeats)]
    columns = [median(column) for column in zip(*samples, strict=True)]
    return IndexRow(blocks, workers, *columns)


def _prompt(rng: random.Random, blocks: int, workers: int) -> tuple[float, ...]:
    """One prompt through a fresh index, in the order of IndexRow's times."""
    start, tokens = rng.getrandbits(64), _tokens(rng, blocks)
    hashing = _us(lambda: chain(tokens, start, _BLOCK_TOKENS))
    hashes = chain(tokens, start, _BLOCK_TOKENS)
    index = PrefixIndex()
    slots = [index.acquire() for _ in range(workers)]
    storing = _us(lambda: index.store(slots[0], start, hashes))
    everybody = (1 << workers) - 1
    single = _us(lambda: index.depths(hashes, everybody))
    for slot in slots[1:]:
        index.store(slot, start, hashes[: rng.randint(1, blocks)])
    shared = _us(lambda: index.depths(hashes, everybody))
    unknown = chain(tokens, start ^ 1, _BLOCK_TOKENS)
    cold = _us(lambda: index.depths(unknown, everybody))
    removing = _us(lambda: index.remove(slots[0], reversed(hashes)))
    return hashing, shared, single, cold, storing, removing


def _tokens(rng: random.Random, blocks: int) -> bytes:
    return pack_tokens([rng.randrange(_VOCABULARY) for _ in range(blocks * _BLOCK_TOKENS)])


def _bytes_per_block(blocks: int, seed: int) -> float:
    hashes: Sequence[int] = chain(_tokens(random.Random(seed), blocks), seed, _BLOCK_TOKENS)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        index = PrefixIndex()
        index.store(index.acquire(), seed, hashes)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / blocks


def _us(work: Callable[[], object]) -> float:
    started_ns = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - started_ns) / 1000
