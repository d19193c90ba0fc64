"""The tree that the routing index keeps its runs in, and what each slot holds of it.

Runs are found by their first and last hash and by the tails of what a slot holds; every change
keeps those, the masks and the counts in step. What a store or a removal means is the index's.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from penstock_core.blocks import HASH_BYTES
from penstock_router.index.runs import Run, bits, digest_of, slots_of

_WIDTH_STEP = 64
_MAX_HINTS = 4096
_SUSPECTS = 1 << 16
_MOST_LEFT_BEHIND = 64
_MOST_CHANGED = 256
# So many are looked for one by one.
_FEW_STARTS = 4
_LOW_BITS = np.dtype("<u2")


@dataclass(slots=True)
class Holder:
    """What one slot holds. ``tails``: the last block of each leading part it has of a run."""

    blocks: int = 0
    # XOR of the hashes, but for the runs that came or went since it was last asked for.
    digest: int = 0
    changed: list[bytes] = field(default_factory=list)
    tails: dict[bytes, Run] = field(default_factory=dict)
    # Runs that are left to forget, once it is being dropped.
    leaving: list[Run] | None = None

    def change(self, blocks: int, packed: bytes) -> None:
        """These hashes came or went."""
        self.blocks += blocks
        self.changed.append(packed)
        if len(self.changed) >= _MOST_CHANGED:
            self.settle()

    def settle(self) -> None:
        """Bring the digest up to date."""
        self.digest ^= digest_of(b"".join(self.changed))
        self.changed.clear()


class RunTree:
    """Runs, and the slots that hold them.

    Attributes:
        heads: every run by its first hash; ``ends`` by its last.
        holders: what each slot holds.
        leaving: mask of the slots that are being dropped.
        width: slots there is room for, a multiple of 8.
        size: bytes of hashes in all runs.
        starts: what first runs hang on, with their number.
    """

    def __init__(self) -> None:
        self.heads: dict[bytes, Run] = {}
        self.ends: dict[bytes, Run] = {}
        self.holders: dict[int, Holder] = {}
        self.leaving = 0
        self.width = _WIDTH_STEP
        self.size = 0
        self.starts: Counter[bytes] = Counter()
        # A filter for ``starts``: should one of them turn out to be a block, the runs that wait
        # for it are hung below it.
        self._suspect = np.zeros(_SUSPECTS, np.bool_)
        self._hints: dict[bytes, Run] = {}

    def hint(self, key: bytes, run: Run) -> None:
        """A block inside a run is likely to be asked for."""
        if len(self._hints) >= _MAX_HINTS:
            self._hints.clear()
        self._hints[key] = run

    def locate(self, slot: int, key: bytes, *, held_only: bool = False) -> tuple[Run, int] | None:
        """The run that a block is in and where its hash begins there.

        Ends and heads of runs and a slot's tails are looked up; anything else is searched for.
        """
        run = self.holders[slot].tails.get(key)
        if run is not None:
            return run, run.held(slot) - HASH_BYTES
        run = self.ends.get(key)
        at = run.size - HASH_BYTES if run is not None else -1
        if run is None:
            run = self.heads.get(key)
            at = 0
        if run is None:
            found = self._search(slot, key, held_only=held_only)
            if found is None:
                return None
            run, at = found
        return (run, at) if not held_only or at < run.held(slot) else None

    def _search(self, slot: int, key: bytes, *, held_only: bool) -> tuple[Run, int] | None:
        hint = self._hints.get(key)
        if hint is not None and self.heads.get(hint.head) is hint:
            at = hint.find(key)
            if at >= 0:
                return hint, at
        bit = 1 << slot
        # Blocks of one slot hang on blocks of the same: look there first.
        for mine in (True,) if held_only else (True, False):
            for run in self.heads.values():
                if bool((run.full | run.part) & bit) is mine and key in run.packed:
                    at = run.find(key)
                    if at >= 0:
                        return run, at
        return None

    def keep(self, slot: int, run: Run, end: int) -> None:
        """A slot holds a run no further than ``end``; what nobody holds then is freed."""
        if run.children == 0 and run.full == 1 << slot and not run.part:
            if end:
                self._cut(run, end)
                return
            self._trim(self._free(run))
        else:
            self.hold(slot, run, run.held(slot), end)
            self._trim(run)

    def hold(self, slot: int, run: Run, held: int, now: int) -> None:
        """A slot that held so many bytes of a run holds ``now`` of them."""
        tails = self.holders[slot].tails
        if 0 < held < run.size:
            tails.pop(run.packed[held - HASH_BYTES : held], None)
        run.hold(slot, now, self.width)
        if 0 < now < run.size:
            tails[run.packed[now - HASH_BYTES : now]] = run

    def _trim(self, run: Run | None) -> None:
        """Free what nobody holds and nothing hangs on."""
        while run is not None and not run.children and not run.full:
            deepest = run.deepest()
            if deepest == run.size:
                return
            if deepest:
                self._cut(run, deepest)
                return
            run = self._free(run)

    def grow(
        self, slot: int, above: Run | None, parent: bytes, packed: bytes
    ) -> tuple[Run | None, int]:
        """New blocks below a run. Returns where they are and how many bytes were taken in."""
        if above is None and parent not in self.starts:
            self._suspect[int.from_bytes(parent[:2], "little")] = True
        packed, awaited = self._until_awaited(above, parent, packed)
        if not packed or packed[-HASH_BYTES:] in self.ends:
            return None, 0
        bit = 1 << slot
        self.holders[slot].change(len(packed) // HASH_BYTES, packed)
        self.size += len(packed)
        if above is not None and not above.children and self._may_lengthen(above, bit):
            run = above
            self._lengthen(run, bit, packed)
        else:
            run = Run(packed, above, b"" if above else parent, bit)
            self.heads[run.head] = run
            if above is None:
                self.starts[parent] += 1
            else:
                above.children += 1
        self.ends[run.end] = run
        if awaited:
            self._adopt(run)
        return run, len(packed)

    def _may_lengthen(self, run: Run, bit: int) -> bool:
        # Those who hold all of it would hold a part from now on, which costs something for each.
        return bool(run.full & bit) and run.full.bit_count() <= _MOST_LEFT_BEHIND

    def _lengthen(self, run: Run, bit: int, packed: bytes) -> None:
        """Add blocks that one of the slots has which hold all of a run."""
        size, left = run.size, run.full & ~bit
        del self.ends[run.end]
        run.packed += packed
        run.size += len(packed)
        for slot in slots_of(left):
            self.hold(slot, run, 0, size)

    def _until_awaited(self, above: Run | None, parent: bytes, packed: bytes) -> tuple[bytes, bool]:
        """New blocks up to the first that other runs wait for, and whether there is one."""
        starts = self.starts
        is_quick = len(starts) <= _FEW_STARTS and parent not in packed
        if is_quick and not any(start in packed for start in starts):
            return packed, False
        hits = self._suspect.take(np.frombuffer(packed, _LOW_BITS)[::4])
        if not hits[hits.argmax()]:
            return packed, False
        for number in np.flatnonzero(hits).tolist():
            at = number * HASH_BYTES
            key = packed[at : at + HASH_BYTES]
            if key == (_top(above).start if above else parent):
                return packed[:at], False  # a cycle
            if key in self.starts:
                return packed[: at + HASH_BYTES], True
        return packed, False

    def _adopt(self, above: Run) -> None:
        """What was taken for a chain start turns out to be a block: hang its runs below it."""
        start = above.end
        del self.starts[start]
        for run in self.heads.values():
            if run.parent is None and run.start == start:
                run.parent, run.start = above, b""
                above.children += 1

    def split(self, run: Run, at: int) -> Run:
        """Cut a run in two; returns the new upper one. The lower one stays the same object."""
        upper = Run(run.packed[:at], run.parent, run.start, run.full)
        partial = [(slot, run.held(slot)) for slot in slots_of(run.part)]
        run.packed, run.size = run.packed[at:], run.size - at
        run.parent, run.start, upper.children = upper, b"", 1
        run.part, run.depth = 0, None
        for slot, held in partial:
            upper.hold(slot, min(held, at), self.width)
            run.hold(slot, max(held - at, 0), self.width)
            tails = self.holders[slot].tails
            if held < at:
                tails[upper.packed[held - HASH_BYTES : held]] = upper
            elif held == at:
                tails.pop(upper.end, None)
        for slot in slots_of(self.leaving & (upper.full | upper.part)):
            leaving = self.holders[slot].leaving
            if leaving is not None:
                leaving.append(upper)
        self.heads[upper.head] = upper
        self.heads[run.head] = run
        self.ends[upper.end] = upper
        return upper

    def merge(self, run: Run) -> None:
        """Undo a split that tells nothing any more: take the run above into this one."""
        above = run.parent
        if above is None or above.children != 1 or above.part:
            return
        if above.full != run.full | run.part:
            return
        if run.depth is not None:
            run.depth[bits(run.part, self.width)] += above.size // HASH_BYTES
        del self.heads[run.head]
        del self.ends[above.end]
        run.packed, run.size = above.packed + run.packed, above.size + run.size
        run.parent, run.start = above.parent, above.start
        self.heads[run.head] = run
        above.full = above.children = 0

    def _cut(self, run: Run, size: int) -> None:
        """Free the blocks behind ``size``, which nobody holds."""
        del self.ends[run.end]
        self.size -= run.size - size
        run.packed, run.size = run.packed[:size], size
        self.ends[run.end] = run
        if run.depth is not None:
            for slot in np.flatnonzero(run.depth == size // HASH_BYTES).tolist():
                run.hold(slot, size, self.width)
                self.holders[slot].tails.pop(run.end, None)
                if run.depth is None:
                    break

    def _free(self, run: Run) -> Run | None:
        """Take a run out; returns the one above."""
        del self.heads[run.head], self.ends[run.end]
        self.size -= run.size
        if run.parent is not None:
            run.parent.children -= 1
        elif self.starts[run.start] > 1:
            self.starts[run.start] -= 1
        else:
            del self.starts[run.start]
        return run.parent

    def widen(self) -> None:
        """Make room for more slots."""
        self.width += _WIDTH_STEP
        for run in self.heads.values():
            if run.depth is not None:
                run.depth = np.concatenate((run.depth, np.zeros(_WIDTH_STEP, np.int32)))


def _top(run: Run) -> Run:
    while run.parent is not None:
        run = run.parent
    return run
