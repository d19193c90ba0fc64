"""The state log: what deltas say, how far the ring reaches, how snapshots are laid out."""

from penstock.worker.v1 import state_pb2, worker_service_pb2
from penstock_core.blocks import unpack_hashes
from penstock_engine.api import KvMoved, KvRemoved, KvStored
from penstock_testing.state.picture import Picture
from penstock_worker.state import log as state_log
from penstock_worker.state.log import StateLog

ROOT = 10**12


def log(ring_deltas: int = 16) -> StateLog:
    return StateLog("epoch-1", state_pb2.WorkerInfo(worker_id="w"), ring_deltas)


def last_delta(of: StateLog) -> state_pb2.Delta:
    frames = of.since(of.seq - 1)
    assert frames is not None
    return worker_service_pb2.WatchStateResponse.FromString(frames[-1]).delta


def admitted(request_id: str) -> state_pb2.LedgerEvent:
    return state_pb2.LedgerEvent(admitted=state_pb2.Admitted(request_id=request_id))


def test_a_chain_of_blocks_travels_as_one_run() -> None:
    state = log()

    state.apply([KvStored(ROOT, (1, 2)), KvStored(2, (3,)), KvStored(ROOT, (4,))])
    state.flush()

    runs = [(run.parent_hash, unpack_hashes(run.block_hashes)) for run in last_delta(state).stored]
    assert runs == [(ROOT, [1, 2, 3]), (ROOT, [4])]


def test_sequence_numbers_are_contiguous_from_one() -> None:
    state = log()

    for key in (1, 2, 3):
        state.apply([KvStored(ROOT, (key,))])
        state.flush()

    frames = state.since(0) or []
    assert [worker_service_pb2.WatchStateResponse.FromString(f).seq for f in frames] == [1, 2, 3]


def test_blocks_that_came_and_went_are_never_mentioned() -> None:
    state = log()

    state.apply([KvStored(ROOT, (1,)), KvRemoved((1,))])

    assert not state.flush()
    assert state.seq == 0


def test_a_block_that_left_and_returned_did_not_change() -> None:
    state = log()
    state.apply([KvStored(ROOT, (1,))])
    state.flush()

    state.apply([KvRemoved((1,)), KvStored(ROOT, (1,))])

    assert not state.flush()


def test_removed_children_come_before_their_parents() -> None:
    state = log()
    state.apply([KvStored(ROOT, (1, 2, 3))])
    state.flush()

    state.apply([KvRemoved((3,)), KvRemoved((2, 1))])
    state.flush()

    assert [unpack_hashes(r.block_hashes) for r in last_delta(state).removed] == [[3, 2, 1]]


def test_a_move_between_memories_is_a_move() -> None:
    state = log()
    state.apply([KvStored(ROOT, (1, 2))])
    state.flush()

    state.apply([KvMoved((2,), "device", "host")])
    state.flush()

    (moved,) = last_delta(state).moved
    assert unpack_hashes(moved.block_hashes) == [2]
    assert (moved.from_tier, moved.to_tier) == (
        state_pb2.KV_TIER_DEVICE,
        state_pb2.KV_TIER_HOST,
    )


def test_the_ring_replays_what_it_still_has() -> None:
    state = log(ring_deltas=2)
    for name in ("a", "b", "c"):
        state.note(admitted(name))
        state.flush()

    assert len(state.since(1) or []) == 2
    assert state.since(3) == []
    assert state.since(0) is None, "the first delta is gone"
    assert state.since(4) is None, "that has not happened yet"


def test_a_snapshot_of_any_size_is_chunked_roots_first() -> None:
    state = log()
    size = state_log.CHUNK_BLOCKS * 2 + 5
    state.apply([KvStored(ROOT, tuple(range(1, size + 1)))])
    state.flush()

    picture = Picture()
    kinds = [picture.take(frame) for frame in state.snapshot()]

    assert kinds == ["snapshot_begin", *["snapshot_chunk"] * 3, "snapshot_end"]
    assert len(picture.parents) == size
    assert picture.parents[state_log.CHUNK_BLOCKS + 1] == state_log.CHUNK_BLOCKS


def test_a_snapshot_keeps_blocks_whose_parent_is_gone_or_came_later() -> None:
    state = log()
    state.apply([KvStored(2, (3,)), KvStored(ROOT, (1, 2)), KvStored(77, (8, 9))])
    state.flush()

    picture = Picture()
    for frame in state.snapshot():
        picture.take(frame)

    assert picture.parents == {1: ROOT, 2: 1, 3: 2, 8: 77, 9: 8}


def test_colliding_hashes_that_form_a_cycle_still_end() -> None:
    state = log()
    state.apply([KvStored(3, (1, 2, 3))])
    state.flush()

    picture = Picture()
    for frame in state.snapshot():
        picture.take(frame)

    assert picture.parents == {1: 3, 2: 1, 3: 2}


def test_a_snapshot_brings_the_requests_that_are_open() -> None:
    state = log()
    done = state_pb2.PrefillDone(request_id="a", cached_tokens=3)
    finished = state_pb2.RequestFinished(request_id="b")
    for event in (
        admitted("a"),
        admitted("b"),
        state_pb2.LedgerEvent(prefill_done=done),
        state_pb2.LedgerEvent(finished=finished),
    ):
        state.note(event)
    state.flush()

    picture = Picture()
    for frame in state.snapshot():
        picture.take(frame)

    assert picture.ledger == [admitted("a"), state_pb2.LedgerEvent(prefill_done=done)]


def test_a_heartbeat_stands_at_the_last_delta_and_not_between_two() -> None:
    state = log()
    picture = Picture()
    state.apply([KvStored(ROOT, (1,))])
    state.flush()
    for frame in state.snapshot():
        picture.take(frame)

    state.apply([KvStored(ROOT, (2,))])

    assert picture.take(state.heartbeat(state_pb2.WorkerLoad())) == "heartbeat"
