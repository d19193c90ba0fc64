"""One worker's state stream: frames in, index and ledger kept equal to the worker's truth.

Owns the protocol (epochs, contiguous sequence, snapshots, digests) and no transport. A gap, a
refused snapshot or a digest that differs puts the stream *out of step*; the follower then watches
again from ``resume_point()``. A snapshot is built in a hidden slot while the old picture goes on
serving, and becomes visible at once when its digest is right.

``apply`` is a generator that stops after every few hundred blocks, so that whoever runs it can let
decisions through.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from penstock_router.frames import (
    Delta,
    Frame,
    Heartbeat,
    LedgerEvent,
    LoadReport,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    WorkerFacts,
)
from penstock_router.index import PrefixIndex

STALE_AFTER_S = 3.0
DEAD_AFTER_S = 10.0
_SLICE_BLOCKS = 256
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

    def stored(self, hashes: Sequence[int]) -> None:
        """Blocks are there now."""
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


@dataclass(slots=True)
class _Building:
    """A snapshot that is arriving."""

    slot: int
    begin: SnapshotBegin
    order: list[int] = field(default_factory=list)
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
        self.slot: int | None = None
        self.facts: WorkerFacts | None = None
        self.epoch = ""
        self.seq = 0
        self.divergences = 0
        self.out_of_step = ""

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
        if self.slot is not None:
            self._garbage.append(self.slot)
        self.slot, self.epoch, self.seq = None, "", 0
        self._observer.reset(())

    def sweep(self) -> Iterator[None]:
        """Free what was discarded, a slice at a time."""
        while self._garbage:
            if self._index.drop(self._garbage[-1], _SLICE_BLOCKS):
                self._garbage.pop()
            yield

    def _fail(self, why: str, *, from_scratch: bool = False) -> None:
        self.out_of_step = why
        if from_scratch:
            self.seq = 0
        self._discard_building()

    def _discard_building(self) -> None:
        if self._building is not None:
            self._garbage.append(self._building.slot)
            self._building = None
            # The resume was refused once; asking for it again would be refused for ever.
            self.seq = 0

    def _begin(self, frame: SnapshotBegin) -> None:
        if frame.epoch != self.epoch:
            self.forget()
        self._discard_building()
        self._building = _Building(self._index.acquire(), frame)
        self.facts = frame.facts

    def _chunk(self, frame: SnapshotChunk) -> Iterator[None]:
        building = self._building
        if building is None:
            self._fail("blocks of a snapshot that never began")
            return
        building.idle_beats = 0
        runs = _runs(frame, building.order)
        if runs is None or len(building.order) > building.begin.num_blocks:
            self.divergences += 1
            self._fail("a snapshot that makes no sense", from_scratch=True)
            return
        for parent, hashes in runs:
            yield from self._store(building.slot, parent, hashes)

    def _end(self, frame: SnapshotEnd) -> Iterator[None]:
        building = self._building
        if building is None:
            self._fail("the end of a snapshot that never began")
            return
        count, digest = self._index.blocks(building.slot), self._index.digest(building.slot)
        if (count, len(building.order), digest) != (
            building.begin.num_blocks,
            building.begin.num_blocks,
            frame.digest,
        ):
            self.divergences += 1
            self._fail("a snapshot whose digest is wrong", from_scratch=True)
            return
        if self.slot is not None:
            self._garbage.append(self.slot)
        self._building = None
        self.slot, self.epoch, self.seq = building.slot, frame.epoch, building.begin.seq
        self._observer.reset(frame.ledger)
        for part in _slices(building.order):
            self._observer.stored(part)
            yield
        for delta in building.early:
            yield from self._delta(delta)

    def _delta(self, frame: Delta) -> Iterator[None]:
        expected = self._building.next_seq() if self._building else self.seq + 1
        if frame.seq < expected:
            return
        if frame.seq > expected or (self.slot is None and self._building is None):
            self._fail(f"delta {frame.seq} came where {expected} was due")
        elif self._building is not None:
            self._building.early.append(frame)
            if len(self._building.early) > _MAX_EARLY_DELTAS:
                self._fail("a snapshot that does not end")
        elif self.slot is not None:
            for hashes in frame.removed:
                for part in _slices(hashes):
                    self._index.remove(self.slot, part)
                    yield
            for parent, hashes in frame.stored:
                yield from self._store(self.slot, parent, hashes)
                self._observer.stored(hashes)
            self.seq = frame.seq
            self._observer.ledger(frame.ledger)

    def _heartbeat(self, frame: Heartbeat) -> None:
        if self._building is not None:
            self._building.idle_beats += 1
            if self._building.idle_beats > 1:
                self._fail("a snapshot that does not get on", from_scratch=True)
            return
        if self.slot is None or frame.seq > self.seq:
            self._fail(f"frames up to {frame.seq} were lost")
            return
        if frame.seq < self.seq:
            return
        known = (self._index.blocks(self.slot), self._index.digest(self.slot))
        if known != (frame.num_blocks, frame.digest):
            self.divergences += 1
            self._fail("the index differs from the worker's truth", from_scratch=True)
            return
        self._observer.report(frame.load)

    def _store(self, slot: int, parent: int, hashes: Sequence[int]) -> Iterator[None]:
        for part in _slices(hashes):
            self._index.store(slot, parent, part)
            parent = part[-1]
            yield


def _slices(hashes: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(hashes), _SLICE_BLOCKS):
        yield hashes[start : start + _SLICE_BLOCKS]


def _runs(chunk: SnapshotChunk, order: list[int]) -> list[tuple[int, list[int]]] | None:
    """Runs of (parent, blocks) of a chunk, whose blocks are added to ``order``; None if malformed."""
    if len(chunk.hashes) != len(chunk.distances) or chunk.first_index != len(order):
        return None
    roots = iter(chunk.root_parents)
    runs: list[tuple[int, list[int]]] = []
    for key, distance in zip(chunk.hashes, chunk.distances, strict=True):
        parent = order[-distance] if 0 < distance <= len(order) else next(roots, None)
        if parent is None or distance > len(order):
            return None
        if runs and distance == 1:
            runs[-1][1].append(key)
        else:
            runs.append((parent, [key]))
        order.append(key)
    return runs
