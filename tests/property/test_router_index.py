"""The index against brute force: sets of blocks a worker, and counting block by block."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock_router.index import PrefixIndex, slots_of

START = 7
# A small forest: block n hangs on block n // 2 (a binary tree) or, for a root, on the chain start.
PARENT = {1000 + n: (1000 + n // 2 if n > 1 else START) for n in range(1, 64)}
LEAVES = [1000 + n for n in range(32, 64)]
BLOCKS = sorted(PARENT)


def path(leaf: int) -> list[int]:
    """The chain from the root to a block."""
    chain = [leaf]
    while PARENT[chain[-1]] != START:
        chain.append(PARENT[chain[-1]])
    return chain[::-1]


def depth(held: set[int], query: Sequence[int]) -> int:
    """How many leading blocks are held."""
    for count, block in enumerate(query):
        if block not in held:
            return count
    return len(query)


def depths(index: PrefixIndex, query: Sequence[int], mask: int) -> dict[int, int]:
    """Depth by slot, as the index says."""
    return {s: d for d, members in index.depths(query, mask) for s in slots_of(members)}


class IndexAgainstBruteForce(RuleBasedStateMachine):
    """Stores and removes in any order: holes, orphans and restarts included."""

    @initialize(workers=st.sampled_from([1, 2, 5, 70]))
    def start(self, workers: int) -> None:
        self.index = PrefixIndex()
        self.held = {self.index.acquire(): set[int]() for _ in range(workers)}

    def slot(self, pick: int) -> int:
        return sorted(self.held)[pick % len(self.held)]

    @rule(pick=st.integers(0, 99), leaf=st.sampled_from(LEAVES), cut=st.integers(0, 6))
    def store_a_run(self, pick: int, leaf: int, cut: int) -> None:
        run = path(leaf)[cut:]
        if run:
            self.index.store(self.slot(pick), PARENT[run[0]], run)
            self.held[self.slot(pick)] |= set(run)

    @rule(pick=st.integers(0, 99), block=st.sampled_from(BLOCKS))
    def store_one_block(self, pick: int, block: int) -> None:
        self.index.store(self.slot(pick), PARENT[block], [block])
        self.held[self.slot(pick)].add(block)

    @rule(pick=st.integers(0, 99), blocks=st.lists(st.sampled_from(BLOCKS), max_size=9))
    def remove_any_blocks(self, pick: int, blocks: list[int]) -> None:
        self.index.remove(self.slot(pick), blocks)
        self.held[self.slot(pick)] -= set(blocks)

    @rule(pick=st.integers(0, 99), slices=st.integers(1, 7))
    def restart_a_worker(self, pick: int, slices: int) -> None:
        slot = self.slot(pick)
        while not self.index.drop(slot, slices):
            pass
        del self.held[slot]
        self.held[self.index.acquire()] = set()

    @rule(leaf=st.sampled_from(LEAVES), extra=st.integers(0, 3))
    def ask(self, leaf: int, extra: int) -> None:
        query = path(leaf) + [5000 + n for n in range(extra)]
        mask = sum(1 << slot for slot in self.held)
        truth = {slot: depth(held, query) for slot, held in self.held.items()}
        assert depths(self.index, query, mask) == {s: d for s, d in truth.items() if d}

    @invariant()
    def nothing_is_broken(self) -> None:
        self.index.check_integrity()
        for slot, held in self.held.items():
            assert self.index.blocks(slot) == len(held)

    def teardown(self) -> None:
        for slot in list(getattr(self, "held", ())):
            while not self.index.drop(slot, 100):
                pass
        if hasattr(self, "index"):
            assert len(self.index) == 0, "memory is bounded by residency"


IndexAgainstBruteForce.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
TestIndexAgainstBruteForce = IndexAgainstBruteForce.TestCase


@settings(max_examples=60, deadline=None)
@given(held=st.lists(st.integers(0, 200), min_size=1, max_size=512), length=st.integers(1, 200))
def test_depths_of_many_workers_are_exact_whether_bisected_or_scanned(
    held: list[int], length: int
) -> None:
    index, chain = PrefixIndex(), list(range(1000, 1200))
    slots = [index.acquire() for _ in held]
    for slot, blocks in zip(slots, held, strict=True):
        index.store(slot, START, chain[:blocks])
    asked = sum(1 << slot for slot in slots[::2])
    truth = {s: min(b, length) for s, b in zip(slots[::2], held[::2], strict=True) if b}
    assert depths(index, chain[:length], asked) == truth
