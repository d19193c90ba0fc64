"""Whatever happens to cache and connection, a subscriber ends with what the engine holds."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.worker.v1 import state_pb2
from penstock_engine.api import KvMoved, KvRemoved, KvStored
from penstock_testing.state.picture import Picture
from penstock_worker.state.log import StateLog

RING = 6
ROOTS = [10_001, 10_002]
LOAD = state_pb2.WorkerLoad()


class StateFeedMachine(RuleBasedStateMachine):
    """An engine's cache, its log, and one subscriber that comes, goes and falls behind."""

    def __init__(self) -> None:
        super().__init__()
        self.log = StateLog("epoch", state_pb2.WorkerInfo(), ring_deltas=RING)
        self.cache: dict[int, int] = {}
        self.open: set[str] = set()
        self.next = 1
        self.picture = Picture()

    @rule(data=st.data(), length=st.integers(1, 4))
    def store(self, data: st.DataObject, length: int) -> None:
        parent = data.draw(st.sampled_from([*ROOTS, *self.cache]))
        hashes = tuple(range(self.next, self.next + length))
        self.next += length
        self.log.apply([KvStored(parent, hashes)])
        for key in hashes:
            self.cache[key] = parent
            parent = key

    @precondition(lambda self: self.cache)
    @rule(data=st.data(), comes_back=st.booleans())
    def remove(self, data: st.DataObject, comes_back: bool) -> None:
        leaves = sorted(set(self.cache) - set(self.cache.values()))
        key = data.draw(st.sampled_from(leaves))
        parent = self.cache.pop(key)
        self.log.apply([KvRemoved((key,))])
        if comes_back:
            self.cache[key] = parent
            self.log.apply([KvStored(parent, (key,))])

    @precondition(lambda self: self.cache)
    @rule(data=st.data(), tier=st.sampled_from(["device", "host"]))
    def move(self, data: st.DataObject, tier: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.cache)))
        self.log.apply([KvMoved((key,), "device", tier)])

    @rule(name=st.sampled_from(["a", "b", "c"]))
    def request(self, name: str) -> None:
        if name in self.open:
            finished = state_pb2.RequestFinished(request_id=name)
            self.log.note(state_pb2.LedgerEvent(finished=finished))
        else:
            self.log.note(state_pb2.LedgerEvent(admitted=state_pb2.Admitted(request_id=name)))
        self.open ^= {name}

    @rule()
    def flush(self) -> None:
        self.log.flush()

    @rule()
    def follow(self) -> None:
        """Take everything there is, as the feed gives it: a replay if it can be, else a snapshot."""
        known = self.picture.epoch == self.log.epoch
        frames = self.log.since(self.picture.seq) if known else None
        if frames is None:
            self.log.flush()
            frames = self.log.snapshot()
        for frame in frames:
            self.picture.take(frame)

    @rule()
    def heartbeat(self) -> None:
        """Checked by the picture itself, if it is current."""
        if self.picture.epoch and self.picture.seq == self.log.seq:
            self.picture.take(self.log.heartbeat(LOAD))

    @rule()
    def forget(self) -> None:
        self.picture = Picture()

    @invariant()
    def a_current_subscriber_sees_the_cache(self) -> None:
        if self.picture.epoch and self.picture.seq == self.log.seq and not self.log.is_dirty:
            assert self.picture.parents == self.cache

    def teardown(self) -> None:
        self.log.flush()
        self.follow()
        assert self.picture.parents == self.cache
        fresh = Picture()
        for frame in self.log.snapshot():
            fresh.take(frame)
        assert fresh.parents == self.cache
        assert {event.admitted.request_id for event in fresh.ledger} == self.open


TestStateFeed = StateFeedMachine.TestCase
TestStateFeed.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
