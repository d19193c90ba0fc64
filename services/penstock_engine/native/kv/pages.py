"""KV pages by number: which are free and how many holders each has.

Owns reference counts, nothing else: what a page contains is the prefix tree's and the
tensors' business. Pure Python; no torch, no asyncio.
"""

from collections import Counter
from collections.abc import Iterable


class PageAllocator:
    """A fixed number of pages with reference counts; the most recently freed page goes out first."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a KV cache needs at least one page, got {capacity}")
        self.capacity = capacity
        self._references = [0] * capacity
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Pages nobody holds."""
        return len(self._free)

    def references(self, page: int) -> int:
        """Holders of a page."""
        return self._references[page]

    def can_allocate(self, count: int = 1) -> bool:
        """Whether ``count`` pages are free."""
        return count <= len(self._free)

    def allocate(self) -> int:
        """Take a free page; the caller is its one holder. Ask ``can_allocate`` first."""
        page = self._free.pop()
        self._references[page] = 1
        return page

    def retain(self, page: int) -> int:
        """Add a holder to a page that has one. Returns the number of holders."""
        assert self._references[page] > 0, f"page {page} is free and cannot be shared"
        self._references[page] += 1
        return self._references[page]

    def release(self, page: int) -> int:
        """Drop a holder; the last one frees the page. Returns the number of holders left."""
        assert self._references[page] > 0, f"page {page} is freed twice"
        self._references[page] -= 1
        if not self._references[page]:
            self._free.append(page)
        return self._references[page]

    def check_integrity(self, held: Iterable[int]) -> None:
        """Raise AssertionError unless ``held`` (a page once for each holder) is what is counted."""
        holders = Counter(held)
        for page, count in enumerate(self._references):
            assert count == holders[page], f"page {page}: {count} counted, {holders[page]} held"
        free = {page for page, count in enumerate(self._references) if not count}
        assert len(self._free) == len(free), "a page is on the free list twice, or lost"
        assert set(self._free) == free, "the free list and the counts disagree"
