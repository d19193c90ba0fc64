"""How fast the index and a decision are: microseconds by blocks and workers.

Measures the production code on made-up chains. Prints nothing; ``penstock bench index`` does.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from penstock_core.blocks import chain, pack_tokens
from penstock_router.cost import CostParams
from penstock_router.facts import Match, RoutingRequest, WorkerView
from penstock_router.index import PrefixIndex, slots_of
from penstock_router.policy import decide, first_divergent

_BLOCK_TOKENS = 32
_SHARED = 64


@dataclass(frozen=True, slots=True)
class Measurement:
    """One cell. ``op`` is hash, match, store, remove or decide; times are of one whole operation."""

    op: str
    blocks: int
    workers: int
    us_p50: float
    us_p99: float


def measure(blocks: int, workers: int, indexed: int = 0, rounds: int = 50) -> Iterator[Measurement]:
    """Time each operation on prompts of this many blocks, over this many workers.

    Args:
        blocks: full blocks of a prompt of 32 tokens each.
        workers: workers that hold shares of it, each to another depth.
        indexed: blocks that the index holds besides.
        rounds: repetitions.
    """
    index, slots = _filled(workers, indexed)
    tokens = pack_tokens([n % 50_000 for n in range(blocks * _BLOCK_TOKENS + 1)])
    hashes = chain(tokens, 1, _BLOCK_TOKENS)
    for number, slot in enumerate(slots):
        index.store(slot, 1, hashes[: (number + 1) * blocks // workers])
    mask = sum(1 << slot for slot in slots)
    fresh = _chains(blocks, rounds)
    last = slots[-1]
    gc.collect()
    operations: list[tuple[str, Callable[[int], object]]] = [
        ("hash", lambda _: chain(tokens, 1, _BLOCK_TOKENS)),
        ("match", lambda _: index.depths(hashes, mask)),
        ("store", lambda n: index.store(last, 2, fresh[n])),
        ("remove", lambda n: index.remove(last, reversed(fresh[n]))),
        ("decide", lambda n: _decide(index, slots, tokens, n)),
    ]
    for op, operation in operations:
        times = sorted(_time(operation, n) for n in range(rounds))
        p50, p99 = times[rounds // 2], times[min(rounds * 99 // 100, rounds - 1)]
        yield Measurement(op, blocks, workers, p50 * 1e6, p99 * 1e6)


def _filled(workers: int, indexed: int) -> tuple[PrefixIndex, list[int]]:
    index = PrefixIndex()
    slots = [index.acquire() for _ in range(workers)]
    for number in range(indexed // _SHARED):
        start = 10**9 + number * _SHARED
        index.store(slots[number % workers], 3, range(start, start + _SHARED))
    return index, slots


def _chains(blocks: int, count: int) -> list[list[int]]:
    return [list(range(10**12 + n * blocks, 10**12 + (n + 1) * blocks)) for n in range(count)]


def _decide(index: PrefixIndex, slots: Sequence[int], tokens: bytes, seed: int) -> object:
    """Everything between a prompt's tokens and the choice."""
    hashes = chain(tokens, 1, _BLOCK_TOKENS)
    matches = {
        str(slot): Match(depth * _BLOCK_TOKENS)
        for depth, group in index.depths(hashes, sum(1 << slot for slot in slots))
        for slot in slots_of(group)
    }
    views = [WorkerView(str(slot), "epoch", backlog_tokens=slot) for slot in slots]
    request = RoutingRequest(
        "request",
        "model",
        len(hashes) * _BLOCK_TOKENS + 1,
        len(hashes),
        matches,
        first_divergent(hashes, list(matches.values()), _BLOCK_TOKENS),
    )
    return decide(views, request, 0.0, seed, CostParams())


def _time(operation: Callable[[int], object], argument: int) -> float:
    began = time.perf_counter()
    operation(argument)
    return time.perf_counter() - began
