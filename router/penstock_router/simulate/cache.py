"""The KV cache of a simulated worker: blocks by hash, least recently used ones go first.

Blocks of running requests are pinned. A chain is released leaf first, so that eviction takes it
from its end, as engines do.
"""

from collections import OrderedDict
from collections.abc import Sequence


class BlockCache:
    """At most ``capacity`` blocks, pinned and evictable together."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._pins: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._private = 0

    def depth(self, blocks: Sequence[int]) -> int:
        """Leading blocks that are here."""
        for depth, key in enumerate(blocks):
            if key not in self._pins and key not in self._idle:
                return depth
        return len(blocks)

    @property
    def pinned_blocks(self) -> int:
        """Blocks that requests use."""
        return len(self._pins) + self._private

    @property
    def cached_blocks(self) -> int:
        """Blocks that could be evicted."""
        return len(self._idle)

    def fits(self, blocks: Sequence[int], private: int) -> bool:
        """Whether a request with these blocks could be held beside the running ones."""
        new = sum(key not in self._pins for key in blocks)
        return len(self._pins) + self._private + new + private <= self.capacity

    def pin(self, blocks: Sequence[int], private: int) -> list[int]:
        """Hold a request's prefix and room for the rest; returns what was evicted for it.

        Args:
            blocks: those that are here already.
            private: blocks that it will fill or that nobody shares.
        """
        for key in blocks:
            self._pins[key] = self._pins.get(key, 0) + 1
            self._idle.pop(key, None)
        self._private += private
        return self._evict()

    def fill(self, blocks: Sequence[int]) -> tuple[list[int], list[int]]:
        """Reserved blocks are computed and may be shared; returns (new ones, evicted ones)."""
        new = []
        for key in blocks:
            if key not in self._pins and key not in self._idle:
                new.append(key)
            self._idle.pop(key, None)
            self._pins[key] = self._pins.get(key, 0) + 1
        self._private -= len(blocks)
        return new, self._evict()

    def release(self, blocks: Sequence[int], private: int) -> None:
        """The request is over: its blocks stay until room is needed, its leaves go first."""
        for key in reversed(blocks):
            left = self._pins[key] - 1
            if left:
                self._pins[key] = left
            else:
                del self._pins[key]
                self._idle[key] = None
        self._private -= private

    def _evict(self) -> list[int]:
        gone = []
        while self._idle and len(self._pins) + self._private + len(self._idle) > self.capacity:
            gone.append(self._idle.popitem(last=False)[0])
        return gone
