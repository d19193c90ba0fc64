"""A run: blocks that follow one another in a chain, and which slots hold how many of them.

The node of the routing index. Hashes stay packed as they come from the wire (8 bytes each,
little-endian), so that comparing, cutting and summing them is the work of C and not of a loop.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from penstock_core.blocks import HASH_BYTES

# A depth no run reaches: a slot that holds all of a run goes on holding it as the run grows.
WHOLE = 2**31 - 1
_HASH = np.dtype("<u8")

Depths = NDArray[np.int32]
"""Blocks by slot."""


class Run:
    """Blocks of one chain without a branch between them.

    A slot holds a leading part of a run or nothing; where it does not, the run is split.

    Attributes:
        packed: the hashes.
        size: their number of bytes, kept since it is asked for all the time.
        parent: the run whose last block the first one hangs on; None for the first of a chain.
        start: what a first run hangs on, a chain start as far as is known; empty for the others.
        children: runs that hang on this one.
        full: mask of the slots that hold all of it.
        part: mask of the slots that hold some leading blocks of it, but not all.
        depth: leading blocks by slot, ``WHOLE`` for those in ``full``; None while ``part`` is 0.
    """

    __slots__ = ("children", "depth", "full", "packed", "parent", "part", "size", "start")

    def __init__(self, packed: bytes, parent: "Run | None", start: bytes, full: int) -> None:
        self.packed = packed
        self.size = len(packed)
        self.parent = parent
        self.start = start
        self.children = 0
        self.full = full
        self.part = 0
        self.depth: Depths | None = None

    @property
    def head(self) -> bytes:
        """Its first hash."""
        return self.packed[:HASH_BYTES]

    @property
    def end(self) -> bytes:
        """Its last hash."""
        return self.packed[-HASH_BYTES:]

    def held(self, slot: int) -> int:
        """Bytes of hashes that a slot holds."""
        if self.full >> slot & 1:
            return self.size
        if self.part >> slot & 1 and self.depth is not None:
            return int(self.depth[slot]) * HASH_BYTES
        return 0

    def hold(self, slot: int, held: int, width: int) -> None:
        """A slot holds this many bytes of hashes from now on; ``width`` slots there are."""
        bit = 1 << slot
        if held == self.size:
            self.full |= bit
            self.part &= ~bit
        elif held:
            self.full &= ~bit
            self.part |= bit
            if self.depth is None:
                self.depth = np.zeros(width, np.int32)
                if self.full:
                    self.depth[bits(self.full, width)] = WHOLE
        else:
            self.full &= ~bit
            self.part &= ~bit
        if self.depth is not None:
            if self.part:
                self.depth[slot] = WHOLE if held == self.size else held // HASH_BYTES
            else:
                self.depth = None

    def deepest(self) -> int:
        """Bytes of hashes that somebody holds."""
        if self.full:
            return self.size
        return int(self.depth.max()) * HASH_BYTES if self.depth is not None else 0

    def find(self, key: bytes, begin: int = 0) -> int:
        """Where a hash begins among the packed ones; -1 if it is not there."""
        at = self.packed.find(key, begin)
        while at % HASH_BYTES and at >= 0:
            at = self.packed.find(key, at + 1)
        return at


def bits(mask: int, width: int) -> NDArray[np.bool_]:
    """A mask's low ``width`` bits (a multiple of 8), one by one."""
    packed = np.frombuffer(mask.to_bytes(width >> 3, "little"), np.uint8)
    return np.unpackbits(packed, bitorder="little").view(np.bool_)


def digest_of(packed: bytes) -> int:
    """XOR of packed hashes."""
    if len(packed) <= HASH_BYTES:
        return int.from_bytes(packed, "little")
    return int(np.bitwise_xor.reduce(np.frombuffer(packed, _HASH)))


def backwards(packed: bytes) -> bytes:
    """Packed hashes, the last one first."""
    return np.frombuffer(packed, _HASH)[::-1].tobytes()


def common(left: bytes, at: int, right: bytes, begin: int = 0) -> int:
    """Bytes of hashes that ``left`` from ``at`` on and ``right`` from ``begin`` on share."""
    most = min(len(left) - at, len(right) - begin)
    if left.startswith(right[begin : begin + most], at):
        return most
    low, high = 0, most // HASH_BYTES  # the first difference is in (low, high]
    while high - low > 1:
        middle = (low + high) >> 1
        here = at + low * HASH_BYTES
        there = begin + low * HASH_BYTES
        if left.startswith(right[there : begin + middle * HASH_BYTES], here):
            low = middle
        else:
            high = middle
    return low * HASH_BYTES


def slots_of(mask: int) -> Iterator[int]:
    """The numbers of the set bits, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
