"""The block cache of the double: partial blocks, salts, leaf-only eviction, host offload, events.

Its hashes are its own, as the package's are. Deliberately unlike Penstock's chain.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Node:
    """A block that can be reused."""

    key: int
    parent: int | None
    tokens: tuple[int, ...]
    level: int = 0
    holders: int = 0


@dataclass
class EventBuffer:
    """Events not yet read: at most ``size``, the oldest are discarded, ids go on counting."""

    size: int
    window: int
    rank: int | None = None
    next_id: int = 0
    drop: int = 0
    told: Callable[[dict[str, object]], None] | None = None
    events: deque[dict[str, object]] = field(default_factory=deque)

    def add(self, data: dict[str, object], window: int | None = None) -> None:
        if self.size == 0:
            return
        event: dict[str, object] = {"event_id": self.next_id, "data": data}
        event["window_size"] = self.window if window is None else window
        if self.rank is not None:
            event["attention_dp_rank"] = self.rank
        self.next_id += 1
        if self.drop > 0:
            self.drop -= 1
            return
        if len(self.events) >= self.size:
            self.events.popleft()
        self.events.append(event)
        if self.told is not None:
            self.told(event)


class BlockCache:
    """Blocks in a pool of ``capacity``, with a second pool behind it if ``host_capacity``."""

    def __init__(
        self,
        capacity: int,
        block: int,
        events: EventBuffer,
        *,
        partial: bool,
        host_capacity: int = 0,
    ) -> None:
        self.capacity, self.block, self.events = capacity, block, events
        self.partial, self.host_capacity = partial, host_capacity
        self.private = 0  # blocks of running requests that nobody can reuse yet
        self.nodes: dict[int, Node] = {}  # least recently used first
        events.add({"type": "created", "num_blocks_per_cache_level": [capacity, host_capacity]})

    @property
    def on_device(self) -> int:
        return sum(node.level == 0 for node in self.nodes.values())

    @property
    def free(self) -> int:
        return self.capacity - self.on_device - self.private

    def match(self, tokens: Sequence[int], salt: str) -> tuple[list[Node], int]:
        """Nodes that hold a prompt's beginning, and how many of its tokens they give."""
        usable, found, parent, at = len(tokens) - 1, [], None, 0
        while at + self.block <= usable:
            node = self.nodes.get(self._key(parent, tokens[at : at + self.block], salt))
            if node is None:
                break
            found.append(node)
            parent, at = node.key, at + self.block
        return found, at + self._partial_match(parent, tokens[at:usable], salt)

    def _partial_match(self, parent: int | None, rest: Sequence[int], salt: str) -> int:
        if not self.partial or not rest:
            return 0
        best = 0
        for node in self.nodes.values():
            if node.parent == parent and self._key(parent, node.tokens, salt) == node.key:
                same = (a == b for a, b in zip(node.tokens, rest, strict=False))
                best = max(
                    best,
                    next(
                        (i for i, s in enumerate(same) if not s), min(len(rest), len(node.tokens))
                    ),
                )
        return best

    def hold(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            node.holders += 1
            self.nodes[node.key] = self.nodes.pop(node.key)
            if node.level:
                self.allocate(1)
                self.private -= 1
                self._move(node, 0)

    def release(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            node.holders -= 1

    def can_allocate(self, count: int, keeping: Sequence[Node]) -> bool:
        kept = {node.key for node in keeping}
        idle = sum(not n.holders and not n.level and n.key not in kept for n in self.nodes.values())
        return self.free + idle >= count

    def allocate(self, count: int) -> None:
        for _ in range(count):
            if self.free < 1:
                self._evict()
            self.private += 1

    def store(self, tokens: Sequence[int], salt: str, *, ends: bool) -> list[Node]:
        """Make the blocks of computed tokens reusable: all that are full, and at the end the rest."""
        run: list[Node] = []
        chain: list[Node] = []
        parent = None
        for at in range(0, len(tokens), self.block):
            part = tuple(tokens[at : at + self.block])
            if len(part) < self.block and not ends:
                break
            key = self._key(parent, part, salt)
            if key not in self.nodes and self.private > 0:
                self.nodes[key] = Node(key, parent, part)
                self.private -= 1
                run.append(self.nodes[key])
            node = self.nodes.get(key)
            if node is None:
                break
            chain.append(node)
            parent = key
        if run:
            self._tell_stored(run)
        return chain

    def _tell_stored(self, run: Sequence[Node]) -> None:
        blocks = [
            {
                "type": "stored_block", "block_hash": node.key, "cache_level": node.level, "priority": 35,
                "tokens": [
                    {"type": "unique_token", "token_id": t, "token_extra_id": 0} for t in node.tokens
                ],
            }
            for node in run
        ]  # fmt: skip
        self.events.add({"type": "stored", "parent_hash": run[0].parent, "blocks": blocks})

    def clear(self) -> None:
        while any(not node.holders for node in self.nodes.values()):
            self._evict(offload=False)

    def _evict(self, *, offload: bool = True) -> None:
        parents = {node.parent for node in self.nodes.values() if node.level == 0}
        leaf = next(
            n
            for n in self.nodes.values()
            if not n.holders and n.level == 0 and n.key not in parents
        )
        if offload and self.host_capacity:
            if len(self.nodes) - self.on_device >= self.host_capacity:
                self._remove(next(n for n in self.nodes.values() if n.level))
            self._move(leaf, 1)
        else:
            self._remove(leaf)

    def _remove(self, node: Node) -> None:
        del self.nodes[node.key]
        self.events.add({"type": "removed", "block_hashes": [node.key]})
        for child in [n for n in self.nodes.values() if n.parent == node.key]:
            self._remove(child)

    def _move(self, node: Node, level: int) -> None:
        diff = {"type": "event_diff", "new_value": level, "old_value": node.level}
        node.level = level
        # What did not change is null: the serializer's next defect.
        update = {"type": "updated", "block_hash": node.key, "cache_level": diff, "priority": None}
        self.events.add(update)

    def _key(self, parent: int | None, tokens: Sequence[int], salt: str) -> int:
        raw = hashlib.blake2b(f"{parent}|{salt}|{list(tokens)}".encode(), digest_size=8).digest()
        return int.from_bytes(raw, "little") | 1 << 63  # unsigned: beyond what int64 holds
