"""What a worker's state feed says, as frames: a mirror of the cache, a ring of deltas, a digest.

Pure: no asyncio, no engine. Everything noted between two flushes becomes one delta, which tells
only what differs, so blocks that came and went in between are never mentioned. Frames are kept
serialized, since each goes to every subscriber.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from penstock.worker.v1 import state_pb2, worker_service_pb2
from penstock_core.blocks import pack_hashes
from penstock_engine.api import KvEvent, KvMoved, KvRemoved, KvStored

RING_DELTAS = 4096
CHUNK_BLOCKS = 8192

_Frame = worker_service_pb2.WatchStateResponse
_TIERS = {
    "device": state_pb2.KV_TIER_DEVICE,
    "host": state_pb2.KV_TIER_HOST,
    "storage": state_pb2.KV_TIER_STORAGE,
}


class _Block(NamedTuple):
    """Where a block hangs and in which memory it is."""

    parent: int
    tier: state_pb2.KvTier.ValueType


class StateLog:
    """The state of one worker process (one epoch), in sequence numbers from 1."""

    def __init__(
        self, epoch: str, info: state_pb2.WorkerInfo, ring_deltas: int = RING_DELTAS
    ) -> None:
        self.epoch = epoch
        self.seq = 0
        self._info = info
        self._blocks: dict[int, _Block] = {}
        self._before: dict[int, _Block | None] = {}  # what differs since the last flush
        self._ledger: list[state_pb2.LedgerEvent] = []
        self._open: dict[str, list[state_pb2.LedgerEvent]] = {}
        self._ring: deque[bytes] = deque(maxlen=ring_deltas)
        self._digest = 0  # as of the last flush, like the count
        self._num_blocks = 0

    @property
    def is_dirty(self) -> bool:
        """Whether anything waits for a flush."""
        return bool(self._before or self._ledger)

    def apply(self, events: Sequence[KvEvent]) -> None:
        """Note changes of the cache, in the engine's order."""
        for event in events:
            match event:
                case KvStored(parent, hashes):
                    for key in hashes:
                        self._set(key, _Block(parent, state_pb2.KV_TIER_DEVICE))
                        parent = key
                case KvRemoved(hashes):
                    for key in hashes:
                        self._set(key, None)
                case KvMoved(hashes, _, to_tier):
                    for key in hashes:
                        if (block := self._blocks.get(key)) is not None:
                            self._set(key, block._replace(tier=_TIERS[to_tier]))

    def note(self, event: state_pb2.LedgerEvent) -> None:
        """Note what happened to a request, or how the worker does."""
        self._ledger.append(event)
        match event.WhichOneof("event"):
            case "admitted":
                self._open[event.admitted.request_id] = [event]
            case "prefill_done":
                if (history := self._open.get(event.prefill_done.request_id)) is not None:
                    history.append(event)
            case "finished":
                self._open.pop(event.finished.request_id, None)

    def flush(self) -> bool:
        """Put what waits into the ring as one delta. False if nothing (left) differs."""
        delta = self._delta()
        self._before, self._ledger = {}, []
        if not delta.ByteSize():
            return False
        self.seq += 1
        frame = _Frame(epoch=self.epoch, seq=self.seq, delta=delta)
        self._ring.append(frame.SerializeToString())
        return True

    def since(self, seq: int) -> list[bytes] | None:
        """Deltas after a sequence number; None if the ring does not reach back there."""
        missing = self.seq - seq
        if missing < 0 or missing > len(self._ring):
            return None
        start = len(self._ring) - missing
        return [self._ring[i] for i in range(start, len(self._ring))]

    def snapshot(self) -> list[bytes]:
        """Frames that hold everything. Flush first: a snapshot stands at a sequence number."""
        assert not self.is_dirty, "a snapshot of a state between two deltas"
        begin = state_pb2.SnapshotBegin(
            as_of_seq=self.seq, num_blocks=self._num_blocks, info=self._info
        )
        ledger = [event for history in self._open.values() for event in history]
        end = state_pb2.SnapshotEnd(xor_digest=self._digest, ledger=ledger)
        frames = [
            self._frame(snapshot_begin=begin),
            *(self._frame(snapshot_chunk=chunk) for chunk in self._chunks()),
            self._frame(snapshot_end=end),
        ]
        return [frame.SerializeToString() for frame in frames]

    def heartbeat(self, load: state_pb2.WorkerLoad) -> bytes:
        """A frame to check one's picture by, as of the last flush."""
        beat = state_pb2.Heartbeat(num_blocks=self._num_blocks, xor_digest=self._digest, load=load)
        return self._frame(heartbeat=beat).SerializeToString()

    def _frame(
        self,
        snapshot_begin: state_pb2.SnapshotBegin | None = None,
        snapshot_chunk: state_pb2.SnapshotChunk | None = None,
        snapshot_end: state_pb2.SnapshotEnd | None = None,
        heartbeat: state_pb2.Heartbeat | None = None,
    ) -> _Frame:
        return _Frame(
            epoch=self.epoch,
            seq=self.seq,
            snapshot_begin=snapshot_begin,
            snapshot_chunk=snapshot_chunk,
            snapshot_end=snapshot_end,
            heartbeat=heartbeat,
        )

    def _set(self, key: int, block: _Block | None) -> None:
        old = self._blocks.pop(key, None)
        # Taken out and put in again, so that a delta lists blocks in the order of their last change.
        self._before[key] = self._before.pop(key) if key in self._before else old
        if block is not None:
            self._blocks[key] = block

    def _delta(self) -> state_pb2.Delta:
        removed: list[tuple[int, _Block]] = []
        stored: list[tuple[int, _Block]] = []
        moved: list[tuple[int, _Block, _Block]] = []
        for key, old in self._before.items():
            new = self._blocks.get(key)
            if old is not None and new is not None and old.parent == new.parent:
                if old.tier != new.tier:
                    moved.append((key, old, new))
                continue
            if old is not None:
                removed.append((key, old))
            if new is not None:
                stored.append((key, new))
        for key, _ in (*removed, *stored):
            self._digest ^= key
        self._num_blocks += len(stored) - len(removed)
        return state_pb2.Delta(
            removed=_removed(removed), stored=_stored(stored), moved=_moved(moved),
            ledger=self._ledger,
        )  # fmt: skip

    def _chunks(self) -> Iterable[state_pb2.SnapshotChunk]:
        order = _roots_first(self._blocks)
        position = {key: index for index, key in enumerate(order)}
        for tier, run in groupby(order, key=lambda key: self._blocks[key].tier):
            keys = list(run)
            for start in range(0, len(keys), CHUNK_BLOCKS):
                yield self._chunk(keys[start : start + CHUNK_BLOCKS], position, tier)

    def _chunk(
        self, keys: list[int], position: dict[int, int], tier: state_pb2.KvTier.ValueType
    ) -> state_pb2.SnapshotChunk:
        chunk = state_pb2.SnapshotChunk(
            block_hashes=pack_hashes(keys), tier=tier, first_index=position[keys[0]]
        )
        for key in keys:
            parent = self._blocks[key].parent
            distance = position[key] - position.get(parent, position[key])
            is_root = distance <= 0
            chunk.parent_distances.append(0 if is_root else distance)
            if is_root:
                chunk.root_parents.append(parent)
        return chunk


def _roots_first(blocks: dict[int, _Block]) -> list[int]:
    """All blocks, each behind its parent (but for a cycle, which takes a collision of hashes)."""
    order: dict[int, None] = {}
    for leaf in blocks:
        path: dict[int, None] = {}
        key = leaf
        while key in blocks and key not in order and key not in path:
            path[key] = None
            key = blocks[key].parent
        order.update(dict.fromkeys(reversed(path)))
    return list(order)


def _removed(blocks: Iterable[tuple[int, _Block]]) -> list[state_pb2.BlocksRemoved]:
    return [
        state_pb2.BlocksRemoved(block_hashes=pack_hashes(key for key, _ in run), tier=tier)
        for tier, run in groupby(blocks, key=lambda item: item[1].tier)
    ]


def _stored(blocks: Iterable[tuple[int, _Block]]) -> list[state_pb2.BlocksStored]:
    """Runs in which each block is the child of the one before."""
    runs: list[tuple[_Block, list[int]]] = []
    for key, block in blocks:
        if runs and runs[-1][1][-1] == block.parent and runs[-1][0].tier == block.tier:
            runs[-1][1].append(key)
        else:
            runs.append((block, [key]))
    return [
        state_pb2.BlocksStored(
            parent_hash=first.parent, block_hashes=pack_hashes(keys), tier=first.tier
        )
        for first, keys in runs
    ]


def _moved(blocks: Iterable[tuple[int, _Block, _Block]]) -> list[state_pb2.BlocksMoved]:
    return [
        state_pb2.BlocksMoved(
            block_hashes=pack_hashes(key for key, _, _ in run), from_tier=tiers[0], to_tier=tiers[1]
        )
        for tiers, run in groupby(blocks, key=lambda item: (item[1].tier, item[2].tier))
    ]
