"""A subscriber's picture of one worker, kept as the state feed's protocol says and nothing else.

The plainest reading of the protocol there can be, to check workers and routers against.
"""

from penstock.worker.v1 import state_pb2, worker_service_pb2
from penstock_core.blocks import unpack_hashes


class Picture:
    """Blocks with their parents, and open requests, as told by frames."""

    def __init__(self) -> None:
        self.epoch = ""
        self.seq = 0
        self.parents: dict[int, int] = {}
        self.ledger: list[state_pb2.LedgerEvent] = []
        self.snapshots = 0
        self.heartbeats: list[state_pb2.Heartbeat] = []
        self._coming: dict[int, int] | None = None
        self._order: list[int] = []

    def take(self, frame: worker_service_pb2.WatchStateResponse | bytes) -> str:
        """Take one frame; returns its kind. Raises AssertionError if the protocol is broken."""
        if isinstance(frame, bytes):
            frame = worker_service_pb2.WatchStateResponse.FromString(frame)
        kind = frame.WhichOneof("frame")
        assert kind is not None, "a frame without content"
        if kind.startswith("snapshot"):
            self._snapshot(frame)
        else:
            assert frame.epoch == self.epoch, "another epoch without a snapshot"
        if kind == "delta":
            assert frame.seq == self.seq + 1, f"delta {frame.seq} after {self.seq}"
            self._delta(frame.delta)
        if kind == "heartbeat":
            assert frame.seq == self.seq
            self._check(frame.heartbeat.num_blocks, frame.heartbeat.xor_digest)
            self.heartbeats.append(frame.heartbeat)
        self.seq = frame.seq
        return kind

    def _snapshot(self, frame: worker_service_pb2.WatchStateResponse) -> None:
        match frame.WhichOneof("frame"):
            case "snapshot_begin":
                assert frame.snapshot_begin.as_of_seq == frame.seq
                self._coming, self._order = {}, []
                self._num_blocks = frame.snapshot_begin.num_blocks
            case "snapshot_chunk":
                self._chunk(frame.snapshot_chunk)
            case "snapshot_end":
                assert self._coming is not None
                self.parents, self._coming = self._coming, None
                self.ledger = list(frame.snapshot_end.ledger)
                self._check(self._num_blocks, frame.snapshot_end.xor_digest)
                self.epoch = frame.epoch
                self.snapshots += 1

    def _chunk(self, chunk: state_pb2.SnapshotChunk) -> None:
        assert self._coming is not None, "a chunk without a beginning"
        assert chunk.first_index == len(self._order), "a chunk out of order"
        roots = iter(chunk.root_parents)
        keys = unpack_hashes(chunk.block_hashes)
        for key, distance in zip(keys, chunk.parent_distances, strict=True):
            parent = self._order[len(self._order) - distance] if distance else next(roots)
            self._order.append(key)
            self._coming[key] = parent
        assert next(roots, None) is None, "more roots' parents than roots"

    def _delta(self, delta: state_pb2.Delta) -> None:
        for removed in delta.removed:
            for key in unpack_hashes(removed.block_hashes):
                del self.parents[key]
        for stored in delta.stored:
            parent = stored.parent_hash
            for key in unpack_hashes(stored.block_hashes):
                assert key not in self.parents, "stored twice"
                self.parents[key] = parent
                parent = key
        for moved in delta.moved:
            for key in unpack_hashes(moved.block_hashes):
                assert key in self.parents, "moved, but not there"
        self.ledger.extend(delta.ledger)

    def _check(self, num_blocks: int, xor_digest: int) -> None:
        digest = 0
        for key in self.parents:
            digest ^= key
        assert (len(self.parents), digest) == (num_blocks, xor_digest), "the picture diverged"
