"""KV memory as the scheduler sees it: the page allocator and the prefix tree as one.

Owns the rule that a page comes from the free list first and from eviction second, and that
the budget of pages is never exceeded. Pure Python; no torch, no asyncio.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

from penstock_core.blocks import TOKEN_BYTES
from penstock_engine.api import KvEvent
from penstock_engine.native.kv.pages import PageAllocator
from penstock_engine.native.kv.prefix import PrefixTree


class KvMemory:
    """Pages for sequences; what they leave behind stays findable until the room is needed."""

    def __init__(self, capacity: int, block_tokens: int) -> None:
        self.capacity = capacity
        self.block_tokens = block_tokens
        self._pages = PageAllocator(capacity)
        self._tree = PrefixTree(self._pages)

    @property
    def used_pages(self) -> int:
        """Pages that sequences hold."""
        return self.capacity - self.available

    @property
    def idle_pages(self) -> int:
        """Pages kept only because somebody may ask for their prefix again."""
        return self._tree.num_idle

    @property
    def available(self) -> int:
        """Pages that can be had: free ones and evictable ones."""
        return self._pages.num_free + self._tree.num_idle

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-num_tokens // self.block_tokens)

    def match(self, start: int, hashes: Sequence[int], tokens: bytes) -> list[int]:
        """Pages of the longest cached prefix, not yet acquired. ``tokens`` are packed."""
        size = self.block_tokens * TOKEN_BYTES
        blocks = (tokens[at : at + size] for at in range(0, len(hashes) * size, size))
        return self._tree.match(start, hashes, blocks)

    def can_take(self, matched: Sequence[int], num_new: int) -> bool:
        """Whether ``num_new`` pages can be had beside the matched ones, which stop being idle."""
        revived = sum(self._pages.references(page) == 1 for page in matched)
        return num_new <= self.available - revived

    def take(self, matched: Sequence[int], num_new: int) -> list[int]:
        """Acquire the matched pages and allocate ``num_new`` more. Ask ``can_take`` first."""
        for page in matched:
            self._tree.acquire(page)
        return [*matched, *(self.allocate() for _ in range(num_new))]

    def can_allocate(self) -> bool:
        """Whether one page can be had."""
        return self.available > 0

    def allocate(self) -> int:
        """One page, evicting if none is free. Ask ``can_allocate`` first."""
        if not self._pages.can_allocate():
            evicted = self._tree.evict()
            assert evicted, "no page is free and none can be evicted"
        return self._pages.allocate()

    def share(self, pages: Sequence[int]) -> list[int]:
        """Another sequence's pages with one more holder each, for a copy-on-write fork."""
        for page in pages:
            self._tree.acquire(page)
        return list(pages)

    def is_shared(self, page: int) -> bool:
        """Whether a write to the page would be seen by others."""
        return self._pages.references(page) > 1

    def release(self, pages: Iterable[int]) -> None:
        """Drop a sequence's hold, the deepest block first, so that leaves are the older ones."""
        for page in reversed(list(pages)):
            self._tree.release(page)

    def store(self, parent: int, key: int, tokens: bytes, page: int) -> int | None:
        """Make a computed block findable; see ``PrefixTree.store``.

        If an equal block is there already its page takes the place of ``page``: the caller's hold
        moves over and the duplicate is freed.
        """
        resident = self._tree.store(parent, key, tokens, page)
        if resident is not None and resident != page:
            self._tree.acquire(resident)
            self._tree.release(page)
        return resident

    def take_events(self) -> list[KvEvent]:
        """Cache changes since the last call, in order."""
        return self._tree.take_events()

    def resident_hashes(self) -> set[int]:
        """What the prefix tree holds now."""
        return self._tree.hashes()

    def check_integrity(self, held: Iterable[int]) -> None:
        """Raise AssertionError unless counts equal the sequences' ``held`` pages and the tree's."""
        self._tree.check_integrity()
        self._pages.check_integrity(chain(held, self._tree.held_pages()))
        assert 0 <= self.used_pages <= self.capacity, "more pages are in use than there are"
