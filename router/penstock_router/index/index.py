"""Which worker holds which blocks of which chain, and how deep a prompt's prefix goes on each.

A node is a *run*: blocks that follow one another without a branch, with bitmasks (Python ints) of
the workers that hold all of it or a leading part. A block's place in its run stands for the masks
it would have by itself: ``reach``, held with everything above, is what is left of ``full`` on the
way down, and a worker's depth inside a run is a number. Where a worker has a hole, the run is
split at it, so depths are exact. What happens to a million blocks costs what happens to their
runs, and the collector has as few objects to look at.

Hashes are packed as on the wire, 8 bytes each. Memory is bounded by what workers hold: blocks
without holder and without a child are freed.

Knows slots (bit numbers), not workers, and no time.
"""

import numpy as np

from penstock_core.blocks import HASH_BYTES
from penstock_router.index.journal import Journal
from penstock_router.index.run_tree import Holder, RunTree
from penstock_router.index.runs import (
    Depths,
    Run,
    backwards,
    bits,
    common,
)

_EVERYBODY = -1  # all ones


class PrefixIndex:
    """Blocks of many slots in one tree of runs.

    Attributes:
        tree: the runs themselves.
        journal: which blocks slots began or ceased to hold.
    """

    def __init__(self) -> None:
        self.tree = RunTree()
        self._heads = self.tree.heads
        self._holders = self.tree.holders
        self.journal = Journal()

    def __len__(self) -> int:
        """Blocks that somebody holds, and those above them."""
        return self.tree.size // HASH_BYTES

    def acquire(self) -> int:
        """A slot that holds nothing; the lowest free one, so that masks stay short."""
        slot = next(n for n in range(len(self._holders) + 1) if n not in self._holders)
        self._holders[slot] = Holder()
        if slot >= self.tree.width:
            self.tree.widen()
        return slot

    def blocks(self, slot: int) -> int:
        """Blocks that a slot holds."""
        return self._holders[slot].blocks

    def digest(self, slot: int) -> int:
        """XOR of the hashes that a slot holds."""
        holder = self._holders[slot]
        holder.settle()
        return holder.digest

    def match(self, packed: bytes) -> Depths:
        """Leading blocks of a chain that each slot holds, by slot; not to be changed.

        Costs a few microseconds a run on the way, whatever the number of blocks and slots.
        """
        found: Depths | None = None
        above: Run | None = None
        at, alive, size = 0, _EVERYBODY, len(packed)
        while at < size and alive:
            run = self._heads.get(packed[at : at + HASH_BYTES])
            if run is None or run.parent is not above:
                break
            shared = (
                run.size if packed.startswith(run.packed, at) else self._shared(packed, at, run)
            )
            going = alive & run.full
            if run.part or (at and going != alive):
                found = self._stop(found, (alive, at, shared), run)
            alive, above = going, run
            at += shared
            if shared < run.size:
                break
        if found is None:
            found = np.zeros(self.tree.width, np.int32)
        elif above is not None and above.parent is None:
            return found  # ``_stop`` has filled in everybody
        if at and alive:
            _fill(found, alive, at // HASH_BYTES)
        return found

    def store(self, slot: int, parent: bytes, packed: bytes) -> None:
        """A run of blocks, each the child of the one before; the first hangs on ``parent``.

        ``parent`` is a block or a chain start; an unknown one is taken for a chain start until
        it is stored itself. A run that contradicts the tree (a cycle) ends at the contradiction.
        """
        if not packed:
            return
        self.journal.note(packed[:HASH_BYTES])
        above, at = self._place(slot, parent, packed)
        size = len(packed)
        while at < size:
            run = self._heads.get(packed[at : at + HASH_BYTES])
            if run is None:
                run, added = self.tree.grow(slot, above, parent, packed[at:])
                if run is None:
                    return
                at += added
            elif run.parent is above:
                shared = common(packed, at, run.packed)
                self._take(slot, run, shared)
                at += shared
                if shared < run.size and at < size:
                    run = self.tree.split(run, shared)
                else:
                    self.tree.merge(run)
            else:
                return
            above = run

    def remove(self, slot: int, packed: bytes) -> None:
        """Blocks that a slot no longer holds, in any order; unknown ones are ignored."""
        at = 0
        while at < len(packed):
            at = self.remove_next(slot, packed, at)

    def remove_next(self, slot: int, packed: bytes, at: int) -> int:
        """Begin (at 0) or go on with a removal: one stretch of a run; returns where to go on."""
        whole = self.tree.ends.get(packed[:HASH_BYTES])
        if (
            whole is not None
            and whole.size == len(packed)
            and whole.full >> slot & 1
            and packed == backwards(whole.packed)
        ):
            # A whole run from its end, as engines free it: nothing to be looked for.
            self.journal.note(whole.packed[:HASH_BYTES])
            self._holders[slot].change(-whole.size // HASH_BYTES, packed)
            self.tree.keep(slot, whole, 0)
            return len(packed)
        place = self.tree.locate(slot, packed[at : at + HASH_BYTES], held_only=True)
        if place is None:
            return at + HASH_BYTES
        run, begin = place
        held = run.held(slot)
        if begin + HASH_BYTES == held:
            gone = _common_backwards(packed, at, run.packed, held)
            begin = held - gone
        else:
            gone = common(packed, at, run.packed[:held], begin)
        gone_hashes = run.packed[begin : begin + gone]
        self.journal.note(gone_hashes[:HASH_BYTES])
        self._holders[slot].change(-gone // HASH_BYTES, gone_hashes)
        if begin + gone < held:  # what is below the hole stays, in a run of its own
            run = self.tree.split(run, begin + gone)
        self.tree.keep(slot, run, begin)
        return at + gone

    def parent(self, slot: int, key: bytes) -> bytes | None:
        """What a block hangs on that a slot holds: a block or a chain start; None if it does not."""
        place = self.tree.locate(slot, key, held_only=True)
        if place is None:
            return None
        run, at = place
        if at:
            return run.packed[at - HASH_BYTES : at]
        return run.start if run.parent is None else run.parent.end

    def drop(self, slot: int, limit: int) -> bool:
        """Look through ``limit`` runs for what a slot holds; true when it holds nothing any more.

        Its depths are not right meanwhile, which is why nobody may ask for them.
        """
        self.journal.note_any()
        holder, bit = self._holders[slot], 1 << slot
        if holder.leaving is None:
            holder.leaving = list(self._heads.values())
            self.tree.leaving |= bit
        for _ in range(min(limit, len(holder.leaving))):
            run = holder.leaving.pop()
            if (run.full | run.part) & bit:
                self.tree.keep(slot, run, 0)
        if holder.leaving:
            return False
        self.tree.leaving &= ~bit
        del self._holders[slot]
        return True

    def _take(self, slot: int, run: Run, end: int) -> None:
        """A slot holds a run up to ``end``, if not further already."""
        held = run.held(slot)
        if end > held:
            self._holders[slot].change((end - held) // HASH_BYTES, run.packed[held:end])
            self.tree.hold(slot, run, held, end)

    def _place(self, slot: int, parent: bytes, packed: bytes) -> tuple[Run | None, int]:
        """The run to go on below (None: a chain begins), and how much is done already."""
        head = self._heads.get(packed[:HASH_BYTES])
        if head is not None:
            known = head.start if head.parent is None else head.parent.end
            if known == parent:
                return head.parent, 0
        if parent in self.tree.starts:
            return None, 0
        place = self.tree.locate(slot, parent)
        if place is None:
            return None, 0
        run, at = place
        at += HASH_BYTES
        if at == run.size:
            return run, 0
        shared = common(packed, 0, run.packed, at) if at <= run.held(slot) else 0
        if shared:
            self._take(slot, run, at + shared)
        if shared == len(packed) or at + shared == run.size:
            return run, shared
        return self.tree.split(run, at + shared), shared

    def _shared(self, packed: bytes, at: int, run: Run) -> int:
        shared = common(packed, at, run.packed)
        if at + shared < len(packed):
            # Where a prompt leaves a run, blocks are soon stored.
            self.tree.hint(packed[at + shared - HASH_BYTES : at + shared], run)
        return shared

    def _stop(self, found: Depths | None, way: tuple[int, int, int], run: Run) -> Depths:
        """Fill in the slots that do not hold all of a run; ``way``: who got here, where, how far."""
        alive, at, shared = way
        if found is None:
            if not at and run.depth is not None:
                return np.minimum(run.depth, shared // HASH_BYTES)
            found = np.zeros(self.tree.width, np.int32)
        _fill(found, alive & ~(run.full | run.part), at // HASH_BYTES)
        here = alive & run.part
        if here and run.depth is not None:
            slots = bits(here, self.tree.width)
            found[slots] = np.minimum(run.depth[slots], shared // HASH_BYTES) + at // HASH_BYTES
        return found


def _fill(found: Depths, mask: int, depth: int) -> None:
    """Give one depth to the slots of a mask."""
    if not mask:
        return
    if mask & (mask - 1):
        found[bits(mask, len(found))] = depth
    else:
        found[mask.bit_length() - 1] = depth


def _common_backwards(packed: bytes, at: int, run: bytes, held: int) -> int:
    """Bytes of hashes that ``packed`` from ``at`` on shares with a run read backwards from ``held``."""
    most = min(len(packed) - at, held)
    following = packed[at + HASH_BYTES : at + 2 * HASH_BYTES]
    if most <= HASH_BYTES or following != run[held - 2 * HASH_BYTES : held - HASH_BYTES]:
        return HASH_BYTES
    return common(packed, at, backwards(run[held - most : held]))
