"""The worker's own picture of TensorRT-LLM's KV cache, in our block names. Pure.

Owns the way from the engine's hashes, which are its own and not stable between versions, to the
chain of ``penstock_core.blocks``. Follows ranks, memory levels and the largest attention window; swallows
partial blocks and blocks whose owner is unknown. A gap in the event ids taints everything: the engine has dropped events and
tells nothing twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock_core.blocks import chain, pack_tokens
from penstock_engine.api import KvEvent, KvMoved, KvRemoved, KvStored
from penstock_engine.trtllm.cache_events import (
    HOST_LEVEL,
    CacheEvent,
    Created,
    Removed,
    Stored,
    StoredBlock,
    Unknown,
    Updated,
)
from penstock_engine.trtllm.roots import Roots

_Copy = tuple[int | None, int]  # rank and the engine's hash


@dataclass(slots=True)
class _Block:
    """A block of ours: the copies of it that the engine has, with their memory levels."""

    parent: int
    copies: dict[_Copy, int] = field(default_factory=dict)

    @property
    def level(self) -> int:
        return min(self.copies.values())


class Tainted(Exception):
    """Events were lost: the picture is worthless. ``missing`` tells how many, if that is known."""

    def __init__(self, missing: int) -> None:
        super().__init__(f"{missing} cache events were dropped by the engine")
        self.missing = missing


class KvMirror:
    """Blocks that the engine can reuse."""

    def __init__(self, block_tokens: int, roots: Roots) -> None:
        self.capacity_blocks: int | None = None
        """Blocks of the largest window's pool, over all ranks; None until the engine told."""
        self._block_tokens = block_tokens
        self._roots = roots
        self._blocks: dict[int, _Block] = {}
        self._names: dict[_Copy, int | None] = {}  # None: swallowed
        self._window = 0
        self._pools: dict[tuple[int, int | None], int] = {}
        self._last_ids: dict[int | None, int] = {}
        self._last_id: int | None = None
        self._any_id_next = False  # for ranks not heard of since the last gap
        self._by_rank = False  # whether each rank is known to count its own events

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def num_swallowed(self) -> int:
        """Blocks of the engine that the picture leaves out."""
        return sum(name is None for name in self._names.values())

    @property
    def ranks(self) -> tuple[int, ...]:
        """Attention-data-parallel ranks that were heard of."""
        return tuple(sorted(rank for rank in self._last_ids if rank is not None))

    def depth(self, hashes: Sequence[int], rank: int | None = None) -> int:
        """How many leading blocks are there, on one rank if it is named."""
        for index, name in enumerate(hashes):
            block = self._blocks.get(name)
            if block is None or not (rank is None or any(r == rank for r, _ in block.copies)):
                return index
        return len(hashes)

    def apply(self, event: CacheEvent) -> list[KvEvent]:
        """Follow one event; what it changes in our names.

        Raises:
            Tainted: events before this one are missing. Call ``clear`` and apply it again.
        """
        self._count(event)
        if event.window < self._window:
            return []
        changes: list[KvEvent] = []
        if event.window > self._window:
            changes = self._forget()  # what was learnt belongs to a smaller window
            self._window = event.window
        return changes + self._follow(event)

    def clear(self) -> list[KvEvent]:
        """Forget everything but the pools; any event id may come next."""
        self._last_ids.clear()
        self._last_id = None
        self._any_id_next = True
        return self._forget()

    def _forget(self) -> list[KvEvent]:
        gone = tuple(reversed(_parents_first(self._blocks)))
        self._blocks.clear()
        self._names.clear()
        return [KvRemoved(gone)] if gone else []

    def _count(self, event: CacheEvent) -> None:
        """Ids are counted by the engine or by each of its ranks; one of both must go on.

        Which of both shows with the first id that only ranks of their own explain: from then on
        another rank's count hides no gap.
        """
        own, last = self._last_ids.get(event.rank), self._last_id
        follows_own = own is not None and event.event_id == own + 1
        follows_last = last is not None and event.event_id == last + 1
        begins = own is None and (self._any_id_next or last is None or event.event_id == 0)
        if not (follows_own or begins or (follows_last and not self._by_rank)):
            before = own if self._by_rank else max(own or 0, last or 0)
            raise Tainted(max(event.event_id - (before or 0) - 1, 0))
        begins_anew = last is not None and event.event_id == 0
        if (follows_own or begins_anew) and not follows_last:
            self._by_rank = True
        self._last_ids[event.rank] = event.event_id
        self._last_id = event.event_id

    def _follow(self, event: CacheEvent) -> list[KvEvent]:
        match event.change:
            case Created(levels):
                self._pools[event.window, event.rank] = levels[0] if levels else 0
                sizes = [n for (window, _), n in self._pools.items() if window == self._window]
                self.capacity_blocks = sum(sizes)
            case Stored(parent, blocks):
                return self._store(event.rank, parent, blocks)
            case Removed(keys):
                return self._remove([(event.rank, key) for key in keys])
            case Updated(key, level) if level is not None:
                return self._move((event.rank, key), level)
            case Updated() | Unknown():
                pass
        return []

    def _store(
        self, rank: int | None, parent: int | None, blocks: Sequence[StoredBlock]
    ) -> list[KvEvent]:
        if parent is not None:
            above = self._names.get((rank, parent))
        else:
            above = self._owner(blocks[0], rank) if blocks else None
        changes: list[KvEvent] = []
        for block in blocks:
            is_known = above is not None and self._is_whole(block)
            name = self._child(above, block) if above is not None and is_known else None
            self._names[rank, block.key] = name
            if above is not None and name is not None:
                changes += self._add(name, above, (rank, block.key), block.level)
            above = name
        return _joined(changes)

    def _owner(self, block: StoredBlock, rank: int | None) -> int | None:
        if not self._is_whole(block):
            return None
        return self._roots.owner(block.tokens, lambda start: self._holds(start, block, rank))

    def _is_whole(self, block: StoredBlock) -> bool:
        return len(block.tokens) == self._block_tokens and block.is_plain

    def _holds(self, start: int, block: StoredBlock, rank: int | None) -> bool:
        known = self._blocks.get(self._child(start, block))
        return known is not None and any(held == rank for held, _ in known.copies)

    def _child(self, parent: int, block: StoredBlock) -> int:
        return chain(pack_tokens(block.tokens), parent, self._block_tokens)[0]

    def _add(self, name: int, parent: int, copy: _Copy, level: int) -> list[KvEvent]:
        block = self._blocks.get(name)
        if block is not None:
            before = block.level
            block.copies[copy] = level
            return _moves(name, before, block.level)
        self._blocks[name] = _Block(parent, {copy: level})
        return [KvStored(parent, (name,)), *_moves(name, 0, level)]

    def _remove(self, copies: Sequence[_Copy]) -> list[KvEvent]:
        gone: list[int] = []
        moved: list[KvEvent] = []
        for copy in copies:
            name = self._names.pop(copy, None)
            block = None if name is None else self._blocks.get(name)
            if name is None or block is None:
                continue
            before = block.level
            block.copies.pop(copy, None)
            if block.copies:
                moved += _moves(name, before, block.level)
            else:
                del self._blocks[name]
                gone.append(name)
        return [*moved, KvRemoved(tuple(gone))] if gone else moved

    def _move(self, copy: _Copy, level: int) -> list[KvEvent]:
        name = self._names.get(copy)
        block = None if name is None else self._blocks.get(name)
        if name is None or block is None:
            return []
        before = block.level
        block.copies[copy] = level
        return _moves(name, before, block.level)


def _moves(name: int, before: int, after: int) -> list[KvEvent]:
    old, new = _tier(before), _tier(after)
    return [] if old == new else [KvMoved((name,), old, new)]


def _tier(level: int) -> str:
    return "host" if level >= HOST_LEVEL else "device"


def _joined(changes: list[KvEvent]) -> list[KvEvent]:
    """Stored blocks that continue each other as one run."""
    runs: list[KvEvent] = []
    for change in changes:
        last = runs[-1] if runs else None
        if (
            isinstance(change, KvStored)
            and isinstance(last, KvStored)
            and change.parent == last.hashes[-1]
        ):
            runs[-1] = KvStored(last.parent, (*last.hashes, *change.hashes))
        else:
            runs.append(change)
    return runs


def _parents_first(blocks: dict[int, _Block]) -> list[int]:
    """Every block behind its parent."""
    order: dict[int, None] = {}
    for leaf in blocks:
        path: dict[int, None] = {}
        name = leaf
        while name in blocks and name not in order and name not in path:
            path[name] = None
            name = blocks[name].parent
        order.update(dict.fromkeys(reversed(path)))
    return list(order)
