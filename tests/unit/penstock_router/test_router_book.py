"""Breaker, decision book, sync states, settings, translation: small things with one job."""

import asyncio

import pytest

from penstock.worker.v1 import state_pb2, worker_service_pb2
from penstock_core.blocks import pack_hashes
from penstock_core.errors import MalformedMessage
from penstock_core.settings import SettingsError
from penstock_router import bench, frames
from penstock_router.decisions.book import DecisionBook, DecisionRecord, Inputs
from penstock_router.fleet import translate
from penstock_router.fleet.breaker import FAILURES_TO_OPEN, Breaker
from penstock_router.fleet.changes import Changes
from penstock_router.fleet.sync import SyncState, WorkerSync
from penstock_router.fleet.tracked import Picture, TrackedWorker
from penstock_router.index.index import PrefixIndex
from penstock_router.metrics import RouterMetrics
from penstock_router.policy.cost import CostParams
from penstock_router.policy.facts import Candidate, Decision, RoutingRequest
from penstock_router.settings import RouterSettings


def record(number: int, request_id: str = "req", worker_id: str = "w") -> DecisionRecord:
    chosen = Candidate(worker_id, "e", 1, "LIVE", 64, 64.0, 36.0, 0, 0.1, 0.2, 0, 0, 0, 0, 0.3)
    asked = RoutingRequest(request_id, "m", 100, 3, {})
    inputs = Inputs(0.0, CostParams(), (), asked, 1)
    return DecisionRecord(
        f"dec-{number}", request_id, 0, 0.0, "m", "p", inputs, Decision(chosen, chosen), 5
    )


DONE = frames.PrefillDone("req", 64, 36, 0.0, 0.1, 0.25)
ENDED = frames.Finished("req", 7)


async def test_an_outcome_joins_its_decision_from_the_ledger() -> None:
    book = DecisionBook()
    book.add(record(1))
    assert await book.outcome("dec-1", 0) is None
    assert book.on_ledger("another worker", DONE) is None
    book.on_ledger("w", DONE)
    assert await book.outcome("dec-1", 0) is None, "it still runs"
    book.on_ledger("w", ENDED)
    outcome = await book.outcome("dec-1", 0)
    assert outcome is not None
    assert (outcome.predicted_cached_tokens, outcome.actual_cached_tokens) == (64, 64)
    assert outcome.predicted_ttft_s == pytest.approx(0.3)
    assert outcome.actual_ttft_s == 0.25
    assert (outcome.output_tokens, outcome.status) == (7, "OK")


async def test_after_the_stream_the_ledger_is_awaited() -> None:
    book = DecisionBook()
    book.add(record(1))
    book.stream_over("dec-1")
    asked = asyncio.create_task(book.outcome("dec-1", 10))
    await asyncio.sleep(0)
    book.on_ledger("w", ENDED)
    outcome = await asked
    assert outcome is not None
    assert await book.outcome("unknown", 0) is None


async def test_who_saw_it_fail_settles_it_for_good() -> None:
    book = DecisionBook()
    book.add(record(1))
    book.stream_over("dec-1", "worker_lost")
    assert book.on_ledger("w", ENDED) is None
    outcome = await book.outcome("dec-1", 0)
    assert outcome is not None
    assert outcome.status == "worker_lost"


def test_the_latest_attempt_of_a_request_is_found_and_old_ones_are_dropped() -> None:
    book = DecisionBook(capacity=2)
    for number in range(3):
        book.add(record(number, request_id=f"req-{number // 2}"))
    assert book.find(decision_id="dec-0") is None
    found = book.find(request_id="req-0")
    assert found is not None
    assert found.decision_id == "dec-1"
    book.add(record(3))
    assert book.find(request_id="req-0") is None


def test_a_slow_watcher_misses_the_oldest() -> None:
    book = DecisionBook()
    with book.watch() as queue:
        for number in range(300):
            book.add(record(number))
        assert queue.get_nowait().decision_id == "dec-44"
    book.add(record(300))
    assert queue.qsize() == 255


def test_a_breaker_opens_after_failures_in_a_row_and_probes_once() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(0.0)
    breaker.succeeded()
    breaker.failed(0.0)
    assert not breaker.is_open(0.0)
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(0.0)
    assert breaker.is_open(9.9)
    assert not breaker.is_open(10.0), "half open"
    breaker.sent(10.0)
    assert breaker.is_open(10.1), "one probe is enough"
    breaker.failed(11.0)
    assert breaker.is_open(30.9), "it waits twice as long"
    breaker.sent(31.0)
    breaker.succeeded()
    assert not breaker.is_open(31.1)


async def test_waiters_are_woken_by_a_change_or_give_up() -> None:
    changes = Changes()
    waiting = asyncio.create_task(changes.wait(10))
    await asyncio.sleep(0)
    changes.notify()
    assert await waiting
    assert not await changes.wait(0)


class Ignores:
    def stored(self, hashes: object) -> None: ...
    def ledger(self, events: object) -> None: ...
    def reset(self, events: object) -> None: ...
    def report(self, load: object) -> None: ...


def feed(sync: WorkerSync, now: float, *told: frames.Frame) -> None:
    for frame in told:
        for _ in sync.apply(frame, now):
            pass


def test_a_worker_goes_from_cold_to_live_to_stale_to_dead_and_back() -> None:
    sync = WorkerSync(PrefixIndex(), Ignores())
    facts = frames.WorkerFacts("w", "e", "host:1")
    begin = frames.SnapshotBegin("e", 4, 0, facts)
    seen = [sync.state(0.0)]
    sync.lost(refused=True)
    seen.append(sync.state(0.0))
    assert sync.connecting() == ("", 0)
    feed(sync, 1.0, begin)
    seen.append(sync.state(1.0))
    feed(sync, 1.0, frames.SnapshotEnd("e", 0, ()))
    seen += [sync.state(1.0), sync.state(3.1), sync.state(11.1)]
    feed(sync, 12.0, frames.Heartbeat("e", 4, 0, 0, frames.LoadReport()))
    seen.append(sync.state(12.0))
    sync.lost(refused=False)
    seen.append(sync.state(12.0))
    assert [state.value for state in seen] == (
        ["COLD", "DEAD", "SYNCING", "LIVE", "STALE", "DEAD", "LIVE", "STALE"]
    )
    assert sync.connecting() == ("e", 4), "a broken stream resumes"


def test_a_worker_whose_snapshot_still_comes_takes_requests_under_its_new_epoch() -> None:
    worker = TrackedWorker("host:1", Picture(DecisionBook(), RouterMetrics(), lambda: 0.0))
    assert "COLD" in worker.view(0.0).excluded_because
    for epoch in ("e1", "e2"):
        facts = frames.WorkerFacts("w", epoch, "host:1")
        feed(worker.sync, 0.0, frames.SnapshotBegin(epoch, 1, 5, facts))
        view = worker.view(0.0)
        assert (view.epoch, view.excluded_because, view.confidence) == (epoch, "", 0.7)


def test_a_view_is_kept_until_something_changes() -> None:
    worker = TrackedWorker("host:1", Picture(DecisionBook(), RouterMetrics(), lambda: 0.0))
    facts = frames.WorkerFacts("w", "e", "host:1")
    feed(worker.sync, 0.0, frames.SnapshotBegin("e", 1, 5, facts))
    view = worker.view(0.0)
    assert worker.view(0.01) is view
    worker.load.reserve("r", 70, 0.01, 1.0)
    assert worker.view(0.01).backlog_tokens == 70


def test_a_view_has_the_time_of_a_token_that_speculation_leaves() -> None:
    worker = TrackedWorker("host:1", Picture(DecisionBook(), RouterMetrics(), lambda: 0.0))
    worker.load.take_report(frames.LoadReport(step_s=0.03, tokens_per_step=2.5), 0.0)
    assert worker.view(0.0).step_s == pytest.approx(0.012)
    worker.load.take_report(frames.LoadReport(step_s=0.03, tokens_per_step=0.0), 0.0)
    assert worker.view(0.0).step_s == 0.03


def test_a_view_shows_batch_work_to_batch_only() -> None:
    worker = TrackedWorker("host:1", Picture(DecisionBook(), RouterMetrics(), lambda: 0.0))
    facts = frames.WorkerFacts("w", "e", "host:1")
    feed(worker.sync, 0.0, frames.SnapshotBegin("e", 1, 5, facts))
    worker.load.reserve("r", 70, 0.0, 1.0, is_batch=True)
    online, batch = worker.view(0.0), worker.view(0.0, for_batch=True)
    assert (online.backlog_tokens, online.waiting) == (0, 0)
    assert (batch.backlog_tokens, batch.waiting) == (70, 1)
    assert worker.view(0.0) is online


def test_a_wrong_digest_is_counted_and_asks_for_everything() -> None:
    sync = WorkerSync(PrefixIndex(), Ignores())
    facts = frames.WorkerFacts("w", "e", "host:1")
    feed(sync, 0.0, frames.SnapshotBegin("e", 1, 0, facts), frames.SnapshotEnd("e", 0, ()))
    feed(
        sync, 0.0, frames.Delta("e", 2, stored=(frames.Stored(pack_hashes([1]), pack_hashes([5])),))
    )
    feed(sync, 0.0, frames.Heartbeat("e", 2, 1, 6, frames.LoadReport()))
    assert sync.state(0.0) is SyncState.LIVE
    assert (sync.divergences, bool(sync.out_of_step)) == (1, True)
    assert sync.connecting() == ("", 0)
    assert sync.indexed_blocks() == 1, "the old picture serves until the new one is there"


def test_a_large_snapshot_is_applied_in_slices() -> None:
    sync = WorkerSync(PrefixIndex(), Ignores())
    blocks = pack_hashes(range(100, 5100))
    facts = frames.WorkerFacts("w", "e", "host:1")
    feed(sync, 0.0, frames.SnapshotBegin("e", 1, 5000, facts))
    chunk = frames.SnapshotChunk("e", 0, blocks, (0,) * 5000, (7,) * 5000)
    assert sum(1 for _ in sync.apply(chunk, 0.0)) == 5000, "it can stop after every run"


def test_frames_come_from_the_wire_and_nonsense_does_not() -> None:
    response = worker_service_pb2.WatchStateResponse
    delta = state_pb2.Delta(
        removed=[state_pb2.BlocksRemoved(block_hashes=pack_hashes([9]))],
        stored=[state_pb2.BlocksStored(parent_hash=1, block_hashes=pack_hashes([2, 3]))],
        ledger=[state_pb2.LedgerEvent(finished=state_pb2.RequestFinished(request_id="r"))],
    )
    assert translate.frame(response(epoch="e", seq=3, delta=delta)) == frames.Delta(
        "e",
        3,
        (pack_hashes([9]),),
        (frames.Stored(pack_hashes([1]), pack_hashes([2, 3])),),
        ledger=(frames.Finished("r", 0),),
    )
    assert translate.frame(response(epoch="e")) is None
    broken = state_pb2.SnapshotChunk(block_hashes=b"123")
    with pytest.raises(MalformedMessage):
        translate.frame(response(epoch="e", snapshot_chunk=broken))


def test_who_a_worker_is_survives_the_way_in_and_out() -> None:
    info = state_pb2.WorkerInfo(
        worker_id="w", epoch="e", models=["a", "b"], block_tokens=16, zone="z", adapters=["x"]
    )
    assert translate.info_message(translate.facts(info)) == info


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_ROUTER_WORKERS", "a:1, b:2,")
    monkeypatch.setenv("PENSTOCK_ROUTER_LEASE_SECRET", "hidden")
    settings = RouterSettings.from_environment()
    assert settings.endpoints() == ["a:1", "b:2"]
    assert "hidden" not in repr(settings)
    monkeypatch.setenv("PENSTOCK_ROUTER_GRACE_S", "-1")
    with pytest.raises(SettingsError, match="GRACE_S"):
        RouterSettings.from_environment()


def test_the_bench_measures_each_operation() -> None:
    chains = bench.ChainMaker()
    filled = bench.fill(3, 200, chains)
    cells = [bench.measure_hash(16, 3), *bench.measure(filled, 16, 3, chains)]
    assert [cell.op for cell in cells] == ["hash", "match", "store", "remove", "decide"]
    assert all(0 < cell.us_p50 <= cell.us_p99 for cell in cells)
