"""A router's picture of a worker under every fault a stream can have: it always ends up true.

Frames are dropped, doubled and swapped, connections break, the worker and the router restart, the
ring overflows. Two chunks of one snapshot are not swapped: a stream delivers them in order or
breaks, and nothing in a chunk says which one it is.
"""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from penstock_core.blocks import pack_hashes
from penstock_router.fleet.sync import SyncState, WorkerSync
from penstock_router.frames import (
    Delta,
    Frame,
    Heartbeat,
    LoadReport,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    Stored,
    WorkerFacts,
)
from penstock_router.index.index import PrefixIndex
from penstock_testing.state.index_check import check_integrity

START = 5
PARENT = {1000 + n: (1000 + n // 2 if n > 1 else START) for n in range(1, 32)}


def path(block: int) -> list[int]:
    chain = [block]
    while PARENT[chain[-1]] != START:
        chain.append(PARENT[chain[-1]])
    return chain[::-1]


class Worker:
    """The truth, and a feed as the worker process has it: ring, snapshots, heartbeats."""

    def __init__(self, epoch: int, ring: int, chunk: int) -> None:
        self.epoch, self.seq, self.chunk = f"e{epoch}", 0, chunk
        self.held: set[int] = set()
        self.ring: deque[Delta] = deque(maxlen=ring)

    def change(self, stored: list[int], removed: list[int]) -> Delta:
        self.seq += 1
        gone = tuple(b for b in removed if b in self.held)
        self.held -= set(gone)
        new = [b for b in stored if b not in self.held]
        self.held |= set(new)
        runs = tuple(Stored(pack_hashes([PARENT[b]]), pack_hashes([b])) for b in new)
        delta = Delta(self.epoch, self.seq, (pack_hashes(gone),) if gone else (), runs)
        self.ring.append(delta)
        return delta

    def digest(self) -> int:
        total = 0
        for block in self.held:
            total ^= block
        return total

    def heartbeat(self) -> Heartbeat:
        return Heartbeat(self.epoch, self.seq, len(self.held), self.digest(), LoadReport())

    def watch(self, epoch: str, after: int) -> list[Frame]:
        known = [d.seq for d in self.ring]
        if epoch == self.epoch and after and (after == self.seq or after + 1 in known):
            return [d for d in self.ring if d.seq > after]
        return self.snapshot()

    def snapshot(self) -> list[Frame]:
        order = sorted(self.held)
        facts = WorkerFacts("w", self.epoch, "host:1")
        frames: list[Frame] = [SnapshotBegin(self.epoch, self.seq, len(order), facts)]
        for start in range(0, len(order), self.chunk):
            part = order[start : start + self.chunk]
            at = [order.index(PARENT[b]) if PARENT[b] in self.held else -1 for b in part]
            distances = tuple(start + i - p if p >= 0 else 0 for i, p in enumerate(at))
            roots = tuple(PARENT[b] for b, p in zip(part, at, strict=True) if p < 0)
            hashes = pack_hashes(part)
            frames.append(SnapshotChunk(self.epoch, start, hashes, distances, roots))
        return [*frames, SnapshotEnd(self.epoch, self.digest(), ())]


class Ignores:
    """An observer that does not care."""

    def stored(self, hashes: object) -> None: ...
    def ledger(self, events: object) -> None: ...
    def reset(self, events: object) -> None: ...
    def report(self, load: LoadReport) -> None: ...


class SyncUnderFaults(RuleBasedStateMachine):
    """Any schedule of changes and faults, then quiet: the picture equals the truth."""

    @initialize(ring=st.integers(1, 6), chunk=st.integers(1, 5))
    def start(self, ring: int, chunk: int) -> None:
        self.ring, self.chunk, self.epochs, self.now = ring, chunk, 1, 0.0
        self.worker = Worker(1, ring, chunk)
        self.restart_router()

    @rule()
    def restart_router(self) -> None:
        self.index = PrefixIndex()
        self.sync = WorkerSync(self.index, Ignores())
        self.reconnect()

    @rule()
    def restart_worker(self) -> None:
        self.epochs += 1
        self.worker = Worker(self.epochs, self.ring, self.chunk)
        self.stream: deque[Frame] = deque()
        self.sync.lost(refused=False)
        self.reconnect()

    @rule()
    def reconnect(self) -> None:
        self.stream = deque(self.worker.watch(*self.sync.connecting()))

    @rule(
        stored=st.lists(st.sampled_from(sorted(PARENT)), max_size=6),
        removed=st.lists(st.sampled_from(sorted(PARENT)), max_size=4),
    )
    def change(self, stored: list[int], removed: list[int]) -> None:
        self.stream.append(self.worker.change(stored, removed))

    @rule()
    def beat(self) -> None:
        self.stream.append(self.worker.heartbeat())

    @rule(count=st.integers(1, 8))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.stream))):
            self.now += 0.01
            for _ in self.sync.apply(self.stream.popleft(), self.now):
                check_integrity(self.index)

    @rule(steps=st.integers(0, 2))
    def break_in_the_middle_of_a_frame(self, steps: int) -> None:
        if self.stream:
            half = self.sync.apply(self.stream.popleft(), self.now)
            for _, _step in zip(range(steps), half, strict=False):
                pass
            self.sync.lost(refused=False)
            self.reconnect()

    @rule(at=st.integers(0, 20))
    def drop(self, at: int) -> None:
        if self.stream:
            del self.stream[at % len(self.stream)]

    @rule(at=st.integers(0, 20))
    def double(self, at: int) -> None:
        if self.stream:
            self.stream.insert(at % len(self.stream), self.stream[at % len(self.stream)])

    @rule(at=st.integers(0, 20))
    def swap(self, at: int) -> None:
        if len(self.stream) > 1:
            a = at % (len(self.stream) - 1)
            self.stream[a + 1], self.stream[a] = self.stream[a], self.stream[a + 1]

    @rule()
    def settle(self) -> None:
        """No more faults: two heartbeats find out, two new streams at most repair it."""
        for _ in range(3):
            self.stream += [self.worker.heartbeat(), self.worker.heartbeat()]
            self.deliver(10_000)
            if not self.sync.out_of_step:
                break
            self.reconnect()
        assert not self.sync.out_of_step
        assert self.sync.state(self.now) is SyncState.LIVE
        slot = self.sync.slot
        assert slot is not None
        for block in PARENT:
            query = path(block)
            held = [b in self.worker.held for b in query]
            truth = held.index(False) if False in held else len(query)
            assert self.index.match(pack_hashes(query))[slot] == truth
        assert self.index.blocks(slot) == len(self.worker.held)

    def teardown(self) -> None:
        if hasattr(self, "worker"):
            self.settle()


SyncUnderFaults.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
TestSyncUnderFaults = SyncUnderFaults.TestCase
