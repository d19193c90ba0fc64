"""How fast the index and a decision are: microseconds by blocks and workers.

Measures the production code on made-up chains. Prints nothing; ``penstock bench index`` does.
"""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from penstock_core import lifecycle
from penstock_core.blocks import HASH_BYTES, TOKEN_BYTES, chain, pack_hashes
from penstock_core.ids import new_id
from penstock_router.cost import CostParams
from penstock_router.decisions import DecisionBook, DecisionRecord, Inputs
from penstock_router.demand import deepest
from penstock_router.facts import RoutingRequest, WorkerView
from penstock_router.index import PrefixIndex
from penstock_router.matching import Known, match
from penstock_router.pending import PendingTable
from penstock_router.policy import decide

BLOCK_TOKENS = 32
FILLER_BLOCKS = 64
_START = 1
_PACKED_START = pack_hashes([_START])


@dataclass(frozen=True, slots=True)
class Measurement:
    """One cell. ``op`` is hash, match, store, remove or decide; times are of one whole operation.

    ``bytes_per_block`` stands with stores: what the index takes for a block that one worker holds.
    """

    op: str
    blocks: int
    workers: int | None
    us_p50: float
    us_p99: float
    bytes_per_block: float | None = None


@dataclass(frozen=True, slots=True)
class Filled:
    """An index in which workers hold other blocks already, and what one of them costs in memory."""

    index: PrefixIndex
    slots: tuple[int, ...]
    bytes_per_block: float | None


class ChainMaker:
    """Chains of hashes that look like real ones, each another."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)

    def next(self, blocks: int) -> bytes:
        """A chain of so many blocks, packed."""
        return self._random.bytes(blocks * HASH_BYTES)


def shares(blocks: int, workers: int) -> list[int]:
    """How many leading blocks of the prompt each worker holds: as many depths as there can be."""
    return [(number + 1) * blocks // workers for number in range(workers)]


def fill(workers: int, indexed: int, chains: ChainMaker) -> Filled:
    """An index of ``indexed`` blocks in chains of 64, which the workers take in turn."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        index = PrefixIndex()
        slots = tuple(index.acquire() for _ in range(workers))
        count = indexed // FILLER_BLOCKS
        for number in range(count):
            index.store(slots[number % workers], _PACKED_START, chains.next(FILLER_BLOCKS))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return Filled(index, slots, (after - before) / (count * FILLER_BLOCKS) if count else None)


def measure_hash(blocks: int, rounds: int) -> Measurement:
    """Time the hash chain of a prompt of this many blocks."""
    tokens = _prompt(blocks, 0)
    return _measured("hash", (blocks, None), lambda _: chain(tokens, _START, BLOCK_TOKENS), rounds)


def measure(filled: Filled, blocks: int, rounds: int, chains: ChainMaker) -> Iterator[Measurement]:
    """Time each operation on prompts of this many blocks.

    Args:
        filled: the index, whose workers hold shares of the prompt besides, each to another depth.
        blocks: full blocks of a prompt of 32 tokens each.
        rounds: repetitions.
        chains: where the chains that are stored and removed come from.
    """
    index, slots = filled.index, filled.slots
    tokens = _prompt(blocks, len(slots))
    prompt = pack_hashes(chain(tokens, _START, BLOCK_TOKENS))
    for slot, share in zip(slots, shares(blocks, len(slots)), strict=True):
        index.store(slot, _PACKED_START, prompt[: share * HASH_BYTES])
    fresh = [chains.next(blocks) for _ in range(rounds)]
    # Engines free a chain from its end.
    gone = [np.frombuffer(each, "<u8")[::-1].tobytes() for each in fresh]
    views = [WorkerView(str(slot), "epoch", backlog_tokens=slot) for slot in slots]
    decider, last, cell = _Decider(index, views), slots[-1], (blocks, len(slots))
    with _collecting_as_a_router():
        yield _measured("match", cell, lambda _: index.match(prompt), rounds)
        stored = _measured(
            "store", cell, lambda n: index.store(last, _PACKED_START, fresh[n]), rounds
        )
        yield replace(stored, bytes_per_block=filled.bytes_per_block)
        yield _measured("remove", cell, lambda n: index.remove(last, gone[n]), rounds)
        yield _measured("decide", cell, lambda n: decider.decide(tokens, n), rounds)


@contextmanager
def _collecting_as_a_router() -> Iterator[None]:
    """The garbage collector as it is in a router that serves."""
    before = gc.get_threshold()
    lifecycle.settle()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class _Decider:
    """Everything between a prompt's tokens and the record of where it goes."""

    def __init__(self, index: PrefixIndex, views: list[WorkerView]) -> None:
        self._known = Known(index, PendingTable())
        self._places = [(view.worker_id, slot) for slot, view in enumerate(views)]
        self._views = tuple(views)
        self._params = CostParams()
        self._digest = self._params.digest()
        self._book = DecisionBook()

    def decide(self, tokens: bytes, seed: int) -> None:
        """Hash, match, price, choose, record."""
        began = time.perf_counter()
        request = self._look_up(tokens)
        inputs = Inputs(0.0, self._params, self._views, request, seed)
        decision = decide(self._views, request, 0.0, seed, self._params)
        record = DecisionRecord(
            decision_id=new_id("dec"),
            request_id=request.request_id,
            attempt=0,
            unix_time_s=time.time(),
            model=request.model,
            policy_digest=self._digest,
            inputs=inputs,
            decision=decision,
            decision_us=int((time.perf_counter() - began) * 1e6),
        )
        self._book.add(record)

    def _look_up(self, tokens: bytes) -> RoutingRequest:
        packed = pack_hashes(chain(tokens, _START, BLOCK_TOKENS))
        matches = match(self._known, packed, self._places, BLOCK_TOKENS)
        hashes = memoryview(packed).cast("Q")
        count, held = len(hashes), deepest(hashes, matches, BLOCK_TOKENS).blocks
        divergent = hashes[held] if held < count else None
        prompt_tokens = len(tokens) // TOKEN_BYTES
        return RoutingRequest("request", "model", prompt_tokens, count, matches, divergent)


def _prompt(blocks: int, number: int) -> bytes:
    """Tokens of a prompt that differs from those of other numbers."""
    ids = np.random.default_rng((blocks, number)).integers(0, 50_000, blocks * BLOCK_TOKENS + 1)
    return ids.astype("<u4").tobytes()


def _measured(
    op: str, cell: tuple[int, int | None], operation: Callable[[int], object], rounds: int
) -> Measurement:
    times = sorted(_time(operation, number) for number in range(rounds))
    p50, p99 = times[rounds // 2], times[min(rounds * 99 // 100, rounds - 1)]
    return Measurement(op, *cell, p50 * 1e6, p99 * 1e6)


def _time(operation: Callable[[int], object], argument: int) -> float:
    began = time.perf_counter()
    operation(argument)
    return time.perf_counter() - began
