"""The index against brute force: sets of blocks a worker, and counting block by block."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock_core.blocks import pack_hashes
from penstock_router.index.index import PrefixIndex
from penstock_testing.state.index_check import check_integrity

START, OTHER_START = 7, 8
# Two small forests, as two tenants (or adapters) have them: block n hangs on block n // 2 (a binary
# tree) or, for a root, on its chain start. The third is one long chain: runs grow and are cut.
PARENT = {1000 + n: (1000 + n // 2 if n > 1 else START) for n in range(1, 64)}
PARENT |= {2000 + n: (2000 + n // 2 if n > 1 else OTHER_START) for n in range(1, 16)}
PARENT |= {3000 + n: (3000 + n - 1 if n else START) for n in range(40)}
BLOCKS = sorted(PARENT)
LEAVES = sorted(set(PARENT) - set(PARENT.values()))


def pack(*hashes: int) -> bytes:
    """Hashes as the index takes them."""
    return pack_hashes(hashes)


def path(leaf: int) -> list[int]:
    """The chain from the root to a block."""
    chain = [leaf]
    while PARENT[chain[-1]] in PARENT:
        chain.append(PARENT[chain[-1]])
    return chain[::-1]


def depth(held: set[int], query: Sequence[int]) -> int:
    """How many leading blocks are held."""
    for count, block in enumerate(query):
        if block not in held:
            return count
    return len(query)


class IndexAgainstBruteForce(RuleBasedStateMachine):
    """Stores and removes in any order: holes, orphans and restarts included."""

    @initialize(workers=st.sampled_from([1, 2, 5, 70, 512]))
    def start(self, workers: int) -> None:
        self.index = PrefixIndex()
        self.held = {self.index.acquire(): set[int]() for _ in range(workers)}
        self.leaving: list[int] = []

    def slot(self, pick: int) -> int:
        # Few of them, so that they meet on the same blocks; the last ones, whose bits are high.
        slots = sorted(self.held)[-4:]
        return slots[pick % len(slots)]

    @rule(
        pick=st.integers(0, 3),
        leaf=st.sampled_from(LEAVES),
        part=st.tuples(st.integers(0, 9), st.integers(1, 40)),
    )
    def store_a_run(self, pick: int, leaf: int, part: tuple[int, int]) -> None:
        run = path(leaf)[part[0] : part[0] + part[1]]
        if run:
            self.index.store(self.slot(pick), pack(PARENT[run[0]]), pack(*run))
            self.held[self.slot(pick)] |= set(run)

    @rule(pick=st.integers(0, 3), block=st.sampled_from(BLOCKS))
    def store_one_block(self, pick: int, block: int) -> None:
        self.index.store(self.slot(pick), pack(PARENT[block]), pack(block))
        self.held[self.slot(pick)].add(block)

    @rule(pick=st.integers(0, 3), length=st.integers(1, 40))
    def store_on_everybody(self, pick: int, length: int) -> None:
        for slot, held in self.held.items():
            run = path(3039)[: 1 + (length + slot * pick) % 40]
            self.index.store(slot, pack(START), pack(*run))
            held |= set(run)

    @rule(pick=st.integers(0, 3), blocks=st.lists(st.sampled_from(BLOCKS), max_size=9))
    def remove_any_blocks(self, pick: int, blocks: list[int]) -> None:
        self.index.remove(self.slot(pick), pack(*blocks))
        self.held[self.slot(pick)] -= set(blocks)

    @rule(
        pick=st.integers(0, 3),
        leaf=st.sampled_from(LEAVES),
        cut=st.tuples(st.integers(0, 39), st.integers(1, 40)),
        leaf_first=st.booleans(),
    )
    def remove_part_of_a_chain(
        self, pick: int, leaf: int, cut: tuple[int, int], *, leaf_first: bool
    ) -> None:
        run = path(leaf)[cut[0] : cut[0] + cut[1]]
        self.index.remove(self.slot(pick), pack(*(run[::-1] if leaf_first else run)))
        self.held[self.slot(pick)] -= set(run)

    @rule(pick=st.integers(0, 3), steps=st.integers(0, 3))
    def restart_a_worker(self, pick: int, steps: int) -> None:
        """What it held is forgotten piece by piece, while the others go on."""
        slot = self.slot(pick)
        del self.held[slot]
        self.leaving.append(slot)
        self.held[self.index.acquire()] = set()
        self.forget(steps)

    @rule(steps=st.integers(1, 5))
    def forget(self, steps: int) -> None:
        for _ in range(steps):
            if self.leaving and self.index.drop(self.leaving[0], 2):
                del self.leaving[0]

    @rule(leaf=st.sampled_from(LEAVES), extra=st.integers(0, 3))
    def ask(self, leaf: int, extra: int) -> None:
        query = path(leaf) + [5000 + n for n in range(extra)]
        found = self.index.match(pack(*query))
        for slot, held in self.held.items():
            assert found[slot] == depth(held, query)

    @invariant()
    def nothing_is_broken(self) -> None:
        check_integrity(self.index)
        for slot, held in self.held.items():
            digest = 0
            for block in held:
                digest ^= block
            assert (self.index.blocks(slot), self.index.digest(slot)) == (len(held), digest)
        held_by_some = set[int]().union(*self.held.values())
        needed = {block for leaf in held_by_some for block in path(leaf)}
        if not self.leaving:
            assert len(self.index) <= len(needed), "memory is bounded by residency"

    def teardown(self) -> None:
        for leaf in LEAVES:
            if hasattr(self, "held"):
                self.ask(leaf, 1)
        for slot in [*getattr(self, "held", ()), *getattr(self, "leaving", ())]:
            while not self.index.drop(slot, 100):
                pass
        if hasattr(self, "index"):
            assert len(self.index) == 0


IndexAgainstBruteForce.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
TestIndexAgainstBruteForce = IndexAgainstBruteForce.TestCase


@settings(max_examples=60, deadline=None)
@given(held=st.lists(st.integers(0, 200), min_size=1, max_size=512), length=st.integers(1, 200))
def test_depths_of_many_workers_are_exact(held: list[int], length: int) -> None:
    index, chain = PrefixIndex(), list(range(1000, 1200))
    slots = [index.acquire() for _ in held]
    for slot, blocks in zip(slots, held, strict=True):
        index.store(slot, pack(START), pack(*chain[:blocks]))
    found = index.match(pack(*chain[:length]))
    assert [found[slot] for slot in slots] == [min(blocks, length) for blocks in held]
