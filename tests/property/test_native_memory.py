"""KV memory under random use: no page leaks, no block is lost, events tell the whole truth."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from penstock_core.blocks import pack_tokens
from penstock_engine.api import KvStored
from penstock_engine.native.kv.memory import KvMemory

CAPACITY = 7
BLOCK = 2
START = 1000

Pages = tuple[tuple[int, ...], list[int]]
"""A sequence of blocks, each named by its content, and the pages that hold them."""


def key_of(blocks: tuple[int, ...]) -> int:
    """A weak chain hash, so that collisions between different contents do occur."""
    return START if not blocks else 1 + sum(blocks) * 7 + len(blocks) * 101


def tokens_of(block: int) -> bytes:
    return pack_tokens([block] * BLOCK)


class KvMemoryMachine(RuleBasedStateMachine):
    """Sequences take, store, fork and release pages, as the scheduler would."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.memory = KvMemory(CAPACITY, BLOCK)
        self.held: list[Pages] = []
        self.replayed: set[int] = set()

    @rule(target=sequences, blocks=st.lists(st.integers(0, 3), min_size=1, max_size=4))
    def take(self, blocks: list[int]) -> Pages | None:
        wanted = tuple(blocks)
        hashes = [key_of(wanted[: i + 1]) for i in range(len(wanted))]
        packed = b"".join(map(tokens_of, wanted))
        matched = self.memory.match(START, hashes, packed)
        num_new = len(wanted) - len(matched)
        if not self.memory.can_take(matched, num_new):
            assert self.memory.available < len(wanted)
            return None
        pages = self.memory.take(matched, num_new)
        for depth in range(len(matched), len(wanted)):
            parent, key = key_of(wanted[:depth]), hashes[depth]
            resident = self.memory.store(parent, key, tokens_of(wanted[depth]), pages[depth])
            if resident is None:  # the hash names other tokens
                break
            pages[depth] = resident
        self.held.append((wanted, pages))
        return self.held[-1]

    @rule(target=sequences, sequence=sequences)
    def fork(self, sequence: Pages | None) -> Pages | None:
        if sequence is None or not any(held is sequence for held in self.held):
            return None
        blocks, pages = sequence
        self.held.append((blocks, self.memory.share(pages)))
        return self.held[-1]

    @rule(sequence=consumes(sequences))
    def release(self, sequence: Pages | None) -> None:
        for index, held in enumerate(self.held):
            if held is sequence:
                self.memory.release(held[1])
                del self.held[index]
                return

    @rule()
    def replay_events(self) -> None:
        for event in self.memory.take_events():
            keys = set(event.hashes)
            if isinstance(event, KvStored):
                assert not keys & self.replayed
                assert event.parent in self.replayed | {START}
                self.replayed |= keys
            else:
                assert keys <= self.replayed
                self.replayed -= keys
        assert self.replayed == self.memory.resident_hashes()

    @invariant()
    def counts_equal_holders(self) -> None:
        self.memory.check_integrity(page for _, pages in self.held for page in pages)

    @invariant()
    def the_budget_is_kept(self) -> None:
        distinct = {page for _, pages in self.held for page in pages}
        assert self.memory.used_pages == len(distinct) <= CAPACITY
        assert len(self.memory.resident_hashes()) <= CAPACITY

    def teardown(self) -> None:
        for _, pages in self.held:
            self.memory.release(pages)
        self.memory.check_integrity(())
        assert self.memory.available == CAPACITY


TestKvMemory = KvMemoryMachine.TestCase
TestKvMemory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
