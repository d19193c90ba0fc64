"""The routing index by blocks and workers, and what a block costs in memory.

The times are ``penstock_router.bench``'s, which measures the production code.
"""

from collections.abc import Callable
from dataclasses import dataclass

from penstock_router.bench import ChainMaker, Measurement, fill, measure, measure_hash

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class IndexLoad:
    """Every number of blocks with every number of workers, in an index of ``indexed`` blocks more."""

    blocks: tuple[int, ...] = (16, 256, 2048, 8192)
    workers: tuple[int, ...] = (8, 64, 512)
    indexed: int = 1_000_000
    rounds: int = 50


@dataclass(frozen=True, slots=True)
class IndexBench:
    """Everything that was measured."""

    load: IndexLoad
    measurements: tuple[Measurement, ...]

    @property
    def bytes_per_block(self) -> float | None:
        """The most that a block which one worker holds takes; None if nothing was indexed."""
        found = [cell.bytes_per_block for cell in self.measurements]
        return max((size for size in found if size is not None), default=None)


def measure_index(load: IndexLoad, tell: Tell) -> IndexBench:
    """Measure; ``tell`` hears which part runs."""
    found = [measure_hash(blocks, load.rounds) for blocks in load.blocks]
    chains = ChainMaker()
    for workers in load.workers:
        tell(f"indexing {load.indexed} blocks of {workers} workers")
        filled = fill(workers, load.indexed, chains)
        for blocks in load.blocks:
            tell(f"{blocks} blocks, {workers} workers")
            found += measure(filled, blocks, load.rounds, chains)
    return IndexBench(load, tuple(found))
