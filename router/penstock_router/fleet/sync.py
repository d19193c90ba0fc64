"""One worker's state stream: frames in, index and ledger kept equal to the worker's truth.

Owns the protocol (epochs, contiguous sequence, snapshots, digests) and no transport. A gap, a
refused snapshot or a digest that differs puts the stream *out of step*; the follower then watches
again from ``resume_point()``. A snapshot is built in a hidden slot while the old picture goes on
serving, and becomes visible at once when its digest is right.

``apply`` is a generator that stops after every few runs of blocks, so that whoever runs it can let
decisions through.

Blocks that lie in a lower tier than the device's memory are held as well, but take time to fetch.
A worker that has such is known twice: by all that it holds, and by what is on the device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import NamedTuple, Protocol

from penstock_core.blocks import HASH_BYTES
from penstock_router.frames import (
    Delta,
    Frame,
    Heartbeat,
    LedgerEvent,
    LoadReport,
    Moved,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    Stored,
    WorkerFacts,
)
from penstock_router.index.index import PrefixIndex

# One heartbeat missed: what is not told by then may have been lost.
STALE_AFTER_S = 2.0
DEAD_AFTER_S = 10.0
_SLICE_BYTES = 4096 * HASH_BYTES
_SLICE_RUNS = 256
_MAX_EARLY_DELTAS = 8192


class SyncState(Enum):
    """How well a worker is known."""

    COLD = "COLD"
    SYNCING = "SYNCING"
    LIVE = "LIVE"
    STALE = "STALE"
    DEAD = "DEAD"


class Observer(Protocol):
    """Who wants to know what the stream tells besides blocks."""

    def stored(self, hashes: bytes) -> None:
        """Blocks are there now; packed."""
        ...

    def ledger(self, events: Sequence[LedgerEvent]) -> None:
        """Lines of the ledger."""
        ...

    def reset(self, events: Sequence[LedgerEvent]) -> None:
        """The ledger as a whole; what was known before is void."""
        ...

    def report(self, load: LoadReport) -> None:
        """What the worker does now."""
        ...


class _Slots(NamedTuple):
    """A worker's slots in the index: all it holds, and what of it is on the device, if that differs."""

    everything: int
    device: int | None = None


@dataclass(slots=True)
class _Building:
    """A snapshot that is arriving."""

    slots: _Slots
    begin: SnapshotBegin
    order: bytearray = field(default_factory=bytearray)
    early: list[Delta] = field(default_factory=list)
    # Heartbeats since its last chunk: a snapshot that does not get on has lost its end.
    idle_beats: int = 0

    def next_seq(self) -> int:
        """The delta that comes next after those that arrived with the snapshot."""
        return self.early[-1].seq + 1 if self.early else self.begin.seq + 1


class WorkerSync:
    """What is known of one worker's blocks, and how well."""

    def __init__(self, index: PrefixIndex, observer: Observer) -> None:
        self._index = index
        self._observer = observer
        self._building: _Building | None = None
        self._garbage: list[int] = []
        self._last_frame_at = float("-inf")
        self._connected = False
        self._refused = False
        self._slots: _Slots | None = None
        self._has_tiers = False
        self.facts: WorkerFacts | None = None
        self.epoch = ""
        self.seq = 0
        self.divergences = 0
        self.out_of_step = ""

    @property
    def slot(self) -> int | None:
        """Where the index keeps what the worker holds; None while that is not known."""
        return self._slots.everything if self._slots else None

    @property
    def device_slot(self) -> int | None:
        """Where the index keeps what is on the device; None if that is all of it, or not known."""
        return self._slots.device if self._slots else None

    def resume_point(self) -> tuple[str, int]:
        """(epoch, sequence) to watch from; zero asks for a snapshot."""
        return (self.epoch, self.seq) if self.slot is not None and self.seq else ("", 0)

    def connecting(self) -> tuple[str, int]:
        """A new stream is being opened from the resume point, which is returned."""
        self._discard_building()
        self.out_of_step = ""
        return self.resume_point()

    def lost(self, *, refused: bool) -> None:
        """The stream broke; ``refused`` if it brought no frame at all."""
        self._discard_building()
        self._connected = False
        self._refused = refused

    def state(self, now: float) -> SyncState:
        """How well the worker is known now."""
        silence = now - self._last_frame_at
        if self._refused or (silence > DEAD_AFTER_S and self.facts is not None):
            return SyncState.DEAD
        if self.slot is None and self._building is None:
            return SyncState.COLD
        if not self._connected or silence > STALE_AFTER_S:
            return SyncState.STALE
        return SyncState.SYNCING if self._building is not None else SyncState.LIVE

    def silence_s(self, now: float) -> float:
        """Seconds since the last frame."""
        return now - self._last_frame_at

    def indexed_blocks(self) -> int:
        """Blocks of this worker in the index."""
        return self._index.blocks(self.slot) if self.slot is not None else 0

    def digest(self) -> int:
        """XOR of the hashes of this worker's blocks in the index."""
        return self._index.digest(self.slot) if self.slot is not None else 0

    def apply(self, frame: Frame, now: float) -> Iterator[None]:
        """Take one frame in. Run the iterator to its end before the next frame."""
        self._last_frame_at, self._connected, self._refused = now, True, False
        if self.out_of_step:
            return
        if isinstance(frame, SnapshotBegin):
            self._begin(frame)
        elif frame.epoch != (self._building.begin.epoch if self._building else self.epoch):
            self.forget()
            self._fail("the worker has restarted")
        elif isinstance(frame, SnapshotChunk):
            yield from self._chunk(frame)
        elif isinstance(frame, SnapshotEnd):
            yield from self._end(frame)
        elif isinstance(frame, Delta):
            yield from self._delta(frame)
        else:
            self._heartbeat(frame)
        yield from self.sweep()

    def forget(self) -> None:
        """The worker is another one now: nothing that was known is true any more."""
        self._discard_building()
        self._discard(self._slots)
        self._slots, self.epoch, self.seq = None, "", 0
        self._index.journal.note_any()
        self._observer.reset(())

    def sweep(self) -> Iterator[None]:
        """Free what was discarded, a slice at a time."""
        while self._garbage:
            if self._index.drop(self._garbage[-1], _SLICE_RUNS):
                self._garbage.pop()
            yield

    def _fail(self, why: str, *, from_scratch: bool = False) -> None:
        self.out_of_step = why
        if from_scratch:
            self.seq = 0
        self._discard_building()

    def _discard_building(self) -> None:
        if self._building is not None:
            self._discard(self._building.slots)
            self._building = None
            # The resume was refused once; asking for it again would be refused for ever.
            self.seq = 0

    def _discard(self, slots: _Slots | None) -> None:
        if slots is not None:
            self._garbage += [slot for slot in slots if slot is not None]

    def _begin(self, frame: SnapshotBegin) -> None:
        if frame.epoch != self.epoch:
            self.forget()
        self._discard_building()
        device = self._index.acquire() if self._has_tiers else None
        self._building = _Building(_Slots(self._index.acquire(), device), frame)
        self.facts = frame.facts

    def _chunk(self, frame: SnapshotChunk) -> Iterator[None]:
        building = self._building
        if building is None:
            self._fail("blocks of a snapshot that never began")
            return
        building.idle_beats = 0
        if not frame.on_device and self._found_tiers():
            return
        try:
            for parent, hashes in _runs(frame, building.order):
                yield from self._store(building.slots, Stored(parent, hashes, frame.on_device))
            makes_sense = len(building.order) <= building.begin.num_blocks * HASH_BYTES
        except _MalformedChunkError:
            makes_sense = False
        if not makes_sense:
            self.divergences += 1
            self._fail("a snapshot that makes no sense", from_scratch=True)

    def _end(self, frame: SnapshotEnd) -> Iterator[None]:
        building = self._building
        if building is None:
            self._fail("the end of a snapshot that never began")
            return
        slot, num_blocks = building.slots.everything, building.begin.num_blocks
        known = (self._index.blocks(slot), self._index.digest(slot))
        if known != (num_blocks, frame.digest) or len(building.order) != num_blocks * HASH_BYTES:
            self.divergences += 1
            self._fail("a snapshot whose digest is wrong", from_scratch=True)
            return
        self._discard(self._slots)
        self._building = None
        self._slots, self.epoch, self.seq = building.slots, frame.epoch, building.begin.seq
        self._index.journal.note_any()
        self._observer.reset(frame.ledger)
        for part in _slices(bytes(building.order)):
            self._observer.stored(part)
            yield
        for delta in building.early:
            yield from self._delta(delta)

    def _delta(self, frame: Delta) -> Iterator[None]:
        expected = self._building.next_seq() if self._building else self.seq + 1
        if frame.seq < expected:
            return
        if frame.seq > expected or (self._slots is None and self._building is None):
            self._fail(f"delta {frame.seq} came where {expected} was due")
        elif self._building is not None:
            self._building.early.append(frame)
            if len(self._building.early) > _MAX_EARLY_DELTAS:
                self._fail("a snapshot that does not end")
        elif _shows_tiers(frame) and self._found_tiers():
            return
        elif self._slots is not None:
            yield from self._change(self._slots, frame)
            self.seq = frame.seq
            self._observer.ledger(frame.ledger)

    def _change(self, slots: _Slots, frame: Delta) -> Iterator[None]:
        for hashes in frame.removed:
            for slot in slots:
                yield from self._remove(slot, hashes)
        for stored in frame.stored:
            yield from self._store(slots, stored)
            self._observer.stored(stored.hashes)
        for moved in frame.moved:
            yield from self._move(slots, moved)

    def _heartbeat(self, frame: Heartbeat) -> None:
        if self._building is not None:
            self._building.idle_beats += 1
            if self._building.idle_beats > 1:
                self._fail("a snapshot that does not get on", from_scratch=True)
            return
        if self._slots is None or frame.seq > self.seq:
            self._fail(f"frames up to {frame.seq} were lost")
            return
        if frame.seq < self.seq:
            return
        slot = self._slots.everything
        known = (self._index.blocks(slot), self._index.digest(slot))
        if known != (frame.num_blocks, frame.digest):
            self.divergences += 1
            self._fail("the index differs from the worker's truth", from_scratch=True)
            return
        self._observer.report(frame.load)

    def _found_tiers(self) -> bool:
        """A lower tier is in use; true the first time, when all has to be told again by tier."""
        if self._has_tiers:
            return False
        self._has_tiers = True
        self._fail("it has begun to use a lower tier", from_scratch=True)
        return True

    def _store(self, slots: _Slots, stored: Stored) -> Iterator[None]:
        for slot in slots if stored.on_device else slots[:1]:
            if slot is None:
                continue
            parent = stored.parent
            for part in _slices(stored.hashes):
                self._index.store(slot, parent, part)
                parent = part[-HASH_BYTES:]
                yield

    def _remove(self, slot: int | None, hashes: bytes) -> Iterator[None]:
        at = 0
        while slot is not None and at < len(hashes):
            at = self._index.remove_next(slot, hashes, at)
            yield

    def _move(self, slots: _Slots, moved: Moved) -> Iterator[None]:
        if not moved.to_device:
            yield from self._remove(slots.device, moved.hashes)
        elif slots.device is not None:
            for at in range(0, len(moved.hashes), HASH_BYTES):
                key = moved.hashes[at : at + HASH_BYTES]
                parent = self._index.parent(slots.everything, key)
                if parent is not None:
                    self._index.store(slots.device, parent, key)
                yield


def _shows_tiers(delta: Delta) -> bool:
    return bool(delta.moved) or not all(stored.on_device for stored in delta.stored)


def _slices(hashes: bytes) -> Iterator[bytes]:
    for start in range(0, len(hashes), _SLICE_BYTES):
        yield hashes[start : start + _SLICE_BYTES]


class _MalformedChunkError(Exception):
    """A chunk of a snapshot whose blocks do not hang together."""


def _runs(chunk: SnapshotChunk, order: bytearray) -> Iterator[tuple[bytes, bytes]]:
    """Runs of (parent, blocks) of a chunk, whose blocks are added to ``order``.

    Raises:
        _MalformedChunkError: a parent is missing, or this is not the chunk that comes next.
    """
    count, before = len(chunk.distances), len(order) // HASH_BYTES
    if len(chunk.hashes) != count * HASH_BYTES or chunk.first_index != before:
        raise _MalformedChunkError
    order += chunk.hashes
    roots = iter(chunk.root_parents)
    begins = [n for n, distance in enumerate(chunk.distances) if distance != 1 or not n]
    for begin, end in pairwise([*begins, count]):
        hashes = chunk.hashes[begin * HASH_BYTES : end * HASH_BYTES]
        distance = chunk.distances[begin]
        at = (before + begin - distance) * HASH_BYTES
        root = None if distance else next(roots, None)
        if at < 0 or (root is None and not distance):
            raise _MalformedChunkError
        parent = (
            order[at : at + HASH_BYTES] if root is None else root.to_bytes(HASH_BYTES, "little")
        )
        yield bytes(parent), hashes
