"""The routing index beside Dynamo's ``RadixTree``, both from Python, cell by cell in one run.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install ai-dynamo-runtime==1.6.1 numpy xxhash
    PYTHONPATH=protos:services:router /tmp/peers/bin/python benchmarks/index_peers.py

Needs nothing of Penstock's but the index and what it imports. Both hold the same: as many blocks
beside, in chains of 64, and of each prompt every worker another share. Dynamo takes events as
JSON, which is made before the clock starts, and has applied them when it returns. Exits with 1 where the index needs more than half.
"""

import argparse
import json
import sys
import time
from array import array
from collections.abc import Callable, Sequence

from dynamo._core import RadixTree

from penstock_router.index.index import PrefixIndex

CHAIN_BLOCKS = 64
START = bytes(8)
Pair = tuple[Callable[[], object], Callable[[], object]]


class Both:
    """One state in both indexes."""

    def __init__(self, workers: int, indexed: int) -> None:
        self.workers = workers
        self.ours, self.theirs = PrefixIndex(), RadixTree()
        self.slots = [self.ours.acquire() for _ in range(workers)]
        self._next_hash = self._next_event = 1
        for number in range(indexed // CHAIN_BLOCKS):
            self.store(number % workers, self.fresh(CHAIN_BLOCKS))

    def fresh(self, blocks: int) -> list[int]:
        """Hashes that nobody has seen."""
        begin, self._next_hash = self._next_hash, self._next_hash + blocks
        return [n * 0x9E3779B97F4A7C15 % 2**64 for n in range(begin, begin + blocks)]

    def store(self, worker: int, hashes: Sequence[int]) -> None:
        """A worker holds a chain from its root on."""
        for change in self.storing(worker, hashes):
            change()

    def storing(self, worker: int, hashes: Sequence[int]) -> Pair:
        """The same, ready to be timed."""
        blocks = [{"block_hash": key, "tokens_hash": key} for key in hashes]
        event = self._event({"stored": {"parent_hash": None, "blocks": blocks}})
        packed = array("Q", hashes).tobytes()
        return (
            lambda: self.ours.store(self.slots[worker], START, packed),
            lambda: self.theirs.apply_event(worker, event),
        )

    def removing(self, worker: int, hashes: Sequence[int]) -> Pair:
        """A worker frees a chain from its end, ready to be timed."""
        gone = list(reversed(hashes))
        event = self._event({"removed": {"block_hashes": gone}})
        packed = array("Q", gone).tobytes()
        return (
            lambda: self.ours.remove(self.slots[worker], packed),
            lambda: self.theirs.apply_event(worker, event),
        )

    def matching(self, hashes: Sequence[int]) -> Pair:
        """How deep a prompt goes everywhere."""
        asked, packed = list(hashes), array("Q", hashes).tobytes()
        return lambda: self.ours.match(packed), lambda: self.theirs.find_matches(asked)

    def _event(self, data: dict[str, object]) -> bytes:
        self._next_event += 1
        return json.dumps({"event_id": self._next_event, "data": data, "dp_rank": 0}).encode()


def cell(both: Both, blocks: int, rounds: int) -> list[dict[str, object]]:
    """Each operation in both, alternating."""
    prompt, last = both.fresh(blocks), both.workers - 1
    for worker in range(both.workers):
        if share := (worker + 1) * blocks // both.workers:
            both.store(worker, prompt[:share])
    pairs: dict[str, list[Pair]] = {"match": [both.matching(prompt)] * rounds}
    chains = [both.fresh(blocks) for _ in range(rounds)]
    pairs["store"] = [both.storing(last, chain) for chain in chains]
    pairs["remove"] = [both.removing(last, chain) for chain in chains]
    return [row(op, both.workers, blocks, each) for op, each in pairs.items()]


def row(op: str, workers: int, blocks: int, pairs: Sequence[Pair]) -> dict[str, object]:
    """Medians of both, in microseconds, and their ratio."""
    times = [(timed(ours), timed(theirs)) for ours, theirs in pairs]
    ours, theirs = (sorted(side)[len(times) // 2] for side in zip(*times, strict=True))
    return {
        "op": op,
        "workers": workers,
        "blocks": blocks,
        "penstock_us": round(ours, 1),
        "dynamo_us": round(theirs, 1),
        "ratio": round(ours / theirs, 3),
    }


def timed(operation: Callable[[], object]) -> float:
    """Microseconds of one call."""
    began = time.perf_counter()
    operation()
    return (time.perf_counter() - began) * 1e6


def main() -> int:
    """Print a JSON list of cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", default="16,256,2048,8192")
    parser.add_argument("--workers", default="8,64,512")
    parser.add_argument("--indexed", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    rows = []
    for workers in map(int, args.workers.split(",")):
        both = Both(workers, args.indexed)
        for blocks in map(int, args.blocks.split(",")):
            rows += cell(both, blocks, args.rounds)
    print(json.dumps(rows, indent=1))
    return 0 if all(each["ratio"] <= 0.5 for each in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
