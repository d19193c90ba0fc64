"""Random schedules of faults between workers and routers, by seed: no picture stays wrong.

``PENSTOCK_FAULT_SCHEDULES`` sets how many seeds are tried.
"""

import os
import random

import pytest

from penstock_router.fleet.sync import STALE_AFTER_S, SyncState
from penstock_testing.state.index_check import check_integrity
from penstock_testing.state.sync_faults import TICK_S, Faults, Schedule, is_true

SCHEDULES = int(os.environ.get("PENSTOCK_FAULT_SCHEDULES", "200"))
_GROUPS = 10


def some_faults(seed: int) -> Faults:
    """Each kind of fault in some schedules, now and then all at once."""
    rng = random.Random(seed)
    pick = [rng.choice((0.0, 0.0, 0.02, 0.2)) for _ in range(4)]
    rare = [rng.choice((0.0, 0.0, 0.01, 0.05)) for _ in range(4)]
    return Faults(*pick, *rare)


def ticks(seconds: float) -> int:
    return round(seconds / TICK_S)


def run_one(seed: int) -> None:
    schedule = Schedule(seed, workers=1 + seed % 3, routers=1 + seed % 2)
    for _ in range(3):
        schedule.run(ticks(1.5), some_faults(seed), change=True)
        for _, link in schedule.links():
            if schedule.now - link.heard_at > STALE_AFTER_S:
                assert link.sync.state(schedule.now) is not SyncState.LIVE
    # Quiet. Whatever was lost before, a heartbeat shows within two seconds; what is on its way
    # through a slow or silent link comes first.
    for _, link in schedule.links():
        link.silent_until = 0.0
    schedule.run(ticks(1.5), Faults(), change=False)
    schedule.run(ticks(2.0), Faults(), change=False)
    for index, link in schedule.links():
        assert is_true(index, link) or link.sync.state(schedule.now) is not SyncState.LIVE, seed
    schedule.run(ticks(6.0), Faults(), change=False)
    for index, link in schedule.links():
        assert link.sync.state(schedule.now) is SyncState.LIVE, seed
        assert is_true(index, link), seed
        check_integrity(index)


@pytest.mark.parametrize("group", range(_GROUPS))
def test_after_any_schedule_of_faults_every_index_equals_its_workers_truth(group: int) -> None:
    for seed in range(group, SCHEDULES, _GROUPS):
        run_one(seed)


def test_a_silent_worker_is_stale_within_two_seconds() -> None:
    schedule = Schedule(1, workers=1, routers=1)
    schedule.run(ticks(2.0), Faults(), change=True)
    ((index, link),) = schedule.links()
    assert is_true(index, link)
    link.silent_until = schedule.now + 60
    schedule.run(ticks(STALE_AFTER_S + 0.1), Faults(), change=True)
    assert STALE_AFTER_S <= 2.0
    assert link.sync.state(schedule.now) is SyncState.STALE


def test_a_lost_tail_is_noticed_by_the_next_heartbeat() -> None:
    schedule = Schedule(2, workers=1, routers=1)
    schedule.run(ticks(2.0), Faults(), change=True)
    ((index, link),) = schedule.links()
    while is_true(index, link):
        schedule.workers[0].change()
    schedule.run(1, Faults(drop=1.0), change=False)
    assert not is_true(index, link)
    schedule.run(ticks(1.2), Faults(), change=False)
    assert is_true(index, link)
