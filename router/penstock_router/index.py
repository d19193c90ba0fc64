"""Which worker holds which blocks of which chain, and how deep a prompt's prefix goes on each.

A block is a row in a few parallel arrays; the workers that hold it are bits of Python ints. Two
masks a block: ``resident`` (holds the block) and ``reach`` (holds it and everything above it), with
the invariant ``reach = resident & parent.reach``. ``reach`` only shrinks along a chain, so the depth
of every worker at once is found by bisection over masks, exact even where a worker has a hole.

Rows instead of node objects keep the garbage collector out: a million blocks are a handful of
containers to it. Memory is bounded by what workers hold: a row without holder and child is freed.

Knows slots (bit numbers), not workers, and no time.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

_NONE = -1
_EVERYBODY = -1  # all ones
_LINEAR_SHARE = 16
_LINEAR_FLOOR = 8

DepthGroup = tuple[int, int]
"""(depth in blocks, mask of the slots that have it)."""


@dataclass(slots=True)
class _Holder:
    """What one slot holds."""

    keys: set[int] = field(default_factory=set)
    digest: int = 0


class PrefixIndex:
    """Blocks of many slots under one chain-hash dictionary."""

    def __init__(self) -> None:
        self._at: dict[int, int] = {}
        self._key: list[int] = []
        self._resident: list[int] = []
        self._reach: list[int] = []
        # Superset of the children's residents: tells when looking at the children is needless.
        self._below: list[int] = []
        self._parent = array("i")
        self._child = array("i")
        self._next = array("i")
        self._prev = array("i")
        self._depth = array("i")
        self._free: list[int] = []
        self._holders: dict[int, _Holder] = {}

    def __len__(self) -> int:
        """Rows in use: blocks that somebody holds and the parents they hang on."""
        return len(self._at)

    def acquire(self) -> int:
        """A slot that holds nothing; the lowest free one, so that masks stay short."""
        slot = next(n for n in range(len(self._holders) + 1) if n not in self._holders)
        self._holders[slot] = _Holder()
        return slot

    def blocks(self, slot: int) -> int:
        """Blocks that a slot holds."""
        return len(self._holders[slot].keys)

    def digest(self, slot: int) -> int:
        """XOR of the hashes that a slot holds."""
        return self._holders[slot].digest

    def store(self, slot: int, parent: int, hashes: Iterable[int]) -> None:
        """A run of blocks, each the child of the one before; the first hangs on ``parent``.

        ``parent`` is a block or a chain start; an unknown one is taken for a chain start until
        it is stored itself. A run that contradicts the tree (a cycle) ends at the contradiction.
        """
        holder, bit = self._holders[slot], 1 << slot
        row = self._at.get(parent, _NONE)
        above = self._new(parent, _NONE) if row == _NONE else row
        for key in hashes:
            row = self._at.get(key, _NONE)
            if row == _NONE:
                row = self._new(key, above)
            elif self._parent[row] == _NONE and not self._adopt(row, above):
                break
            if not self._resident[row] & bit:
                holder.keys.add(self._key[row])
                holder.digest ^= key
                self._set(row, bit)
            above = row
        self._prune(above)

    def remove(self, slot: int, hashes: Iterable[int]) -> None:
        """Blocks that a slot no longer holds; unknown ones are ignored."""
        holder, bit = self._holders[slot], 1 << slot
        for key in hashes:
            row = self._at.get(key, _NONE)
            if row == _NONE or not self._resident[row] & bit:
                continue
            holder.keys.discard(key)
            holder.digest ^= key
            self._resident[row] &= ~bit
            if self._reach[row] & bit:
                self._reach[row] &= ~bit
                self._cut_below(row, bit)
            self._prune(row)

    def drop(self, slot: int, limit: int) -> bool:
        """Forget up to ``limit`` blocks of a slot that no query asks for; true when it is free again.

        The slot's ``reach`` is not kept right meanwhile, which is why nobody may ask for it.
        """
        holder, keep = self._holders[slot], ~(1 << slot)
        for _ in range(min(limit, len(holder.keys))):
            row = self._at[holder.keys.pop()]
            self._resident[row] &= keep
            self._reach[row] &= keep
            self._prune(row)
        if holder.keys:
            return False
        del self._holders[slot]
        return True

    def depths(self, hashes: Sequence[int], mask: int) -> list[DepthGroup]:
        """For the slots of ``mask``, how many leading blocks each holds; slots with none are left out.

        O(K log D) probes for K distinct depths; where depths are many, a linear scan ends it.
        """
        if not hashes:
            return []
        found: list[DepthGroup] = []
        alive = mask & self._reach_at(hashes, 1)
        groups = [(1, len(hashes), alive)] if alive else []
        splits, most_splits = 0, max(_LINEAR_FLOOR, len(hashes) // _LINEAR_SHARE)
        while groups:
            low, high, members = groups.pop()
            if low == high:
                found.append((low, members))
            elif splits > most_splits:
                self._scan(hashes, (low, high, members), found)
            else:
                middle = (low + high + 1) >> 1
                deep = members & self._reach_at(hashes, middle)
                shallow = members ^ deep
                if deep:
                    groups.append((middle, high, deep))
                if shallow:
                    groups.append((low, middle - 1, shallow))
                splits += bool(deep and shallow)
        return found

    def _reach_at(self, hashes: Sequence[int], depth: int) -> int:
        row = self._at.get(hashes[depth - 1], _NONE)
        # A block whose way up to the chain start is unknown sits at the wrong depth.
        return self._reach[row] if row != _NONE and self._depth[row] == depth else 0

    def _scan(
        self, hashes: Sequence[int], group: tuple[int, int, int], found: list[DepthGroup]
    ) -> None:
        low, high, members = group
        for depth in range(low + 1, high + 1):
            deep = members & self._reach_at(hashes, depth)
            if deep != members:
                found.append((depth - 1, members ^ deep))
                members = deep
                if not members:
                    return
        found.append((high, members))

    def _set(self, row: int, bit: int) -> None:
        resident, above = self._resident, self._parent[row]
        # The very object, where it can be shared: masks of many workers are not small.
        resident[row] = resident[row] | bit if resident[row] else bit
        if not self._below[above] & bit:
            self._below[above] = self._below[above] | bit if self._below[above] else bit
        if self._reach[above] & bit:
            reach = self._reach[row] | bit
            self._reach[row] = resident[row] if reach == resident[row] else reach
            if self._below[row] & bit:
                self._join_below(row, bit)

    def _join_below(self, row: int, bit: int) -> None:
        stack = [row]
        while stack:
            for child in self._children(stack.pop()):
                if self._resident[child] & bit and not self._reach[child] & bit:
                    self._reach[child] |= bit
                    if self._below[child] & bit:
                        stack.append(child)

    def _cut_below(self, row: int, bit: int) -> None:
        stack = [row] if self._below[row] & bit else []
        while stack:
            above, any_left = stack.pop(), 0
            for child in self._children(above):
                any_left |= self._resident[child] & bit
                if self._reach[child] & bit:
                    self._reach[child] &= ~bit
                    if self._below[child] & bit:
                        stack.append(child)
            if not any_left:
                self._below[above] &= ~bit

    def _children(self, row: int) -> Iterator[int]:
        child = self._child[row]
        while child != _NONE:
            yield child
            child = self._next[child]

    def _new(self, key: int, above: int) -> int:
        reach = _EVERYBODY if above == _NONE else 0
        if self._free:
            row = self._free.pop()
            self._key[row], self._reach[row] = key, reach
        else:
            row = len(self._key)
            self._key.append(key)
            self._resident.append(0)
            self._reach.append(reach)
            self._below.append(0)
            for links in (self._parent, self._child, self._next, self._prev):
                links.append(_NONE)
            self._depth.append(0)
        self._at[key] = row
        if above != _NONE:
            self._link(row, above)
        return row

    def _link(self, row: int, above: int) -> None:
        first = self._child[above]
        self._parent[row], self._next[row] = above, first
        self._depth[row] = self._depth[above] + 1
        if first != _NONE:
            self._prev[first] = row
        self._child[above] = row

    def _adopt(self, row: int, above: int) -> bool:
        """What was taken for a chain start turns out to be a block: hang it below its parent."""
        ancestor = above
        while ancestor != _NONE:
            if ancestor == row:
                return False
            ancestor = self._parent[ancestor]
        self._link(row, above)
        self._reach[row] = 0
        stack = [row]
        while stack:
            parent = stack.pop()
            for child in self._children(parent):
                self._depth[child] = self._depth[parent] + 1
                self._reach[child] = self._resident[child] & self._reach[parent]
                stack.append(child)
        return True

    def _prune(self, row: int) -> None:
        while row != _NONE and not self._resident[row] and self._child[row] == _NONE:
            above, before, after = self._parent[row], self._prev[row], self._next[row]
            if before != _NONE:
                self._next[before] = after
            elif above != _NONE:
                self._child[above] = after
            if after != _NONE:
                self._prev[after] = before
            del self._at[self._key[row]]
            self._key[row] = self._reach[row] = self._below[row] = self._depth[row] = 0
            self._parent[row] = self._next[row] = self._prev[row] = _NONE
            self._free.append(row)
            row = above

    def check_integrity(self) -> None:
        """Raise AssertionError if an invariant is broken. For tests; costs a walk over everything."""
        held: dict[int, set[int]] = {slot: set() for slot in self._holders}
        for key, row in self._at.items():
            above, children = self._parent[row], list(self._children(row))
            assert self._key[row] == key
            assert self._resident[row] or children, "an empty leaf was kept"
            if above == _NONE:
                assert (self._resident[row], self._reach[row], self._depth[row]) == (0, -1, 0)
            else:
                assert self._reach[row] == self._resident[row] & self._reach[above]
                assert self._depth[row] == self._depth[above] + 1
            for child in children:
                assert self._parent[child] == row
                assert self._resident[child] & ~self._below[row] == 0
            for slot in slots_of(self._resident[row]):
                held[slot].add(key)
        for slot, holder in self._holders.items():
            digest = 0
            for key in holder.keys:
                digest ^= key
            assert (held[slot], digest) == (holder.keys, holder.digest)


def slots_of(mask: int) -> Iterator[int]:
    """The numbers of the set bits, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
