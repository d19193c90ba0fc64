"""The prefix tree: which full blocks of tokens have their KV on which page.

Owns one reference to each page it knows, the order of eviction, and the cache events.
A node is found by its chain hash and believed only if its tokens and its parent agree, so a
collision costs a miss and never a wrong answer. A sequence that holds a node holds all its
ancestors too; hence an idle node has no busy child and every idle node can be evicted in time.
Pure Python; no torch, no asyncio.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penstock_engine.api import KvEvent, KvRemoved, KvStored
from penstock_engine.native.kv.pages import PageAllocator


@dataclass(slots=True, eq=False)
class Node:
    """One full block: ``tokens`` (packed) after everything its ancestors hold."""

    hash: int
    parent_hash: int
    parent: "Node | None"
    tokens: bytes
    page: int
    children: int = 0
    stamp: int = 0
    resident: bool = True


class PrefixTree:
    """Full blocks by chain hash, evicted least recently used first and leaf first."""

    def __init__(self, pages: PageAllocator) -> None:
        self._pages = pages
        self._nodes: dict[int, Node] = {}
        self._by_page: dict[int, Node] = {}
        self._leaves: list[tuple[int, int, Node]] = []
        self._clock = 0
        self._num_idle = 0
        self._events: list[KvEvent] = []

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def num_idle(self) -> int:
        """Pages that only the tree holds; all of them can be evicted."""
        return self._num_idle

    def hashes(self) -> set[int]:
        """The resident set."""
        return set(self._nodes)

    def match(self, start: int, hashes: Sequence[int], blocks: Iterator[bytes]) -> list[int]:
        """Pages of the longest resident run of ``blocks``, whose chain from ``start`` is ``hashes``.

        Holds nothing: the caller acquires the pages before anything else is evicted.
        """
        found, parent = [], start
        for key in hashes:
            node = self._nodes.get(key)
            if node is None or node.parent_hash != parent or node.tokens != next(blocks):
                break
            found.append(node.page)
            parent = key
        return found

    def store(self, parent_hash: int, key: int, tokens: bytes, page: int) -> int | None:
        """Make a block findable and return the page that holds it from now on.

        That is ``page``, which the tree retains, or the page of an equal block stored earlier.
        None if the hash names other tokens: neither this block nor any after it can be stored.
        """
        node = self._nodes.get(key)
        if node is not None:
            same = node.parent_hash == parent_hash and node.tokens == tokens
            return node.page if same else None
        parent = self._nodes.get(parent_hash)
        node = Node(key, parent_hash, parent, tokens, page)
        if parent is not None:
            parent.children += 1
        self._nodes[key] = self._by_page[page] = node
        self._pages.retain(page)
        self._note_stored(parent_hash, key)
        return page

    def acquire(self, page: int) -> None:
        """Add a sequence to a page's holders."""
        if self._pages.retain(page) == 2 and page in self._by_page:
            self._num_idle -= 1

    def release(self, page: int) -> None:
        """Drop a sequence from a page's holders; what only the tree holds becomes evictable."""
        if self._pages.release(page) != 1:
            return
        node = self._by_page.get(page)
        if node is not None:
            self._num_idle += 1
            self._clock += 1
            node.stamp = self._clock
            self._offer(node)

    def evict(self) -> bool:
        """Forget the least recently used idle leaf and free its page. False if there is none."""
        while self._leaves:
            stamp, _, node = heapq.heappop(self._leaves)
            if node.resident and node.stamp == stamp and self._is_idle_leaf(node):
                self._remove(node)
                return True
        return False

    def take_events(self) -> list[KvEvent]:
        """Changes since the last call, in order."""
        events, self._events = self._events, []
        return events

    def held_pages(self) -> list[int]:
        """The page of each node: what the tree contributes to the reference counts."""
        return list(self._by_page)

    def check_integrity(self) -> None:
        """Raise AssertionError unless nodes, pages, children and the idle count agree."""
        children: dict[int, int] = dict.fromkeys(self._nodes, 0)
        offered = {id(node) for stamp, _, node in self._leaves if node.stamp == stamp}
        idle = 0
        for key, node in self._nodes.items():
            assert node.resident, f"block {key:x} is gone and still findable"
            assert self._by_page.get(node.page) is node, f"block {key:x} lost its page"
            busy = self._pages.references(node.page) > 1
            idle += not busy
            if node.parent is not None:
                assert node.parent.resident, f"block {key:x} outlived its parent"
                children[node.parent.hash] += 1
                parent_busy = self._pages.references(node.parent.page) > 1
                assert parent_busy or not busy, f"block {key:x} is busy under an idle parent"
            if not busy and not node.children:
                assert id(node) in offered, f"block {key:x} can never be evicted"
        assert len(self._by_page) == len(self._nodes), "two blocks share a page"
        assert idle == self._num_idle, f"{idle} idle blocks, {self._num_idle} counted"
        for key, count in children.items():
            assert count == self._nodes[key].children, f"block {key:x} miscounts its children"

    def _is_idle_leaf(self, node: Node) -> bool:
        return not node.children and self._pages.references(node.page) == 1

    def _offer(self, node: Node) -> None:
        if self._is_idle_leaf(node):
            heapq.heappush(self._leaves, (node.stamp, node.page, node))
            if len(self._leaves) > 4 * len(self._nodes) + 64:
                self._drop_stale_offers()

    def _drop_stale_offers(self) -> None:
        self._leaves = [
            entry
            for entry in self._leaves
            if entry[2].resident and entry[2].stamp == entry[0] and self._is_idle_leaf(entry[2])
        ]
        heapq.heapify(self._leaves)

    def _remove(self, node: Node) -> None:
        node.resident = False
        del self._nodes[node.hash], self._by_page[node.page]
        self._num_idle -= 1
        self._pages.release(node.page)
        if node.parent is not None:
            node.parent.children -= 1
            self._offer(node.parent)
        self._note_removed(node.hash)

    def _note_stored(self, parent_hash: int, key: int) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, KvStored) and last.hashes[-1] == parent_hash:
            self._events[-1] = KvStored(last.parent, (*last.hashes, key))
        else:
            self._events.append(KvStored(parent_hash, (key,)))

    def _note_removed(self, key: int) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, KvRemoved):
            self._events[-1] = KvRemoved((*last.hashes, key))
        else:
            self._events.append(KvRemoved((key,)))
