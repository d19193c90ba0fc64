"""The way to a worker is measured, and noise is not taken for distance."""

import pytest

from penstock_core.rpc import server as rpc
from penstock_router.fleet.distance import Distance
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.worker import running_worker


def test_the_least_of_the_last_round_trips_counts_in_whole_milliseconds() -> None:
    distance = Distance()
    assert distance.seconds == 0.0
    for seconds in (0.5, 0.0127, 0.09):
        distance.add(seconds)
        assert distance.seconds == 0.0, "a few say nothing yet"
    distance.add(0.2)
    assert distance.seconds == pytest.approx(0.012)
    for _ in range(16):
        distance.add(0.0301)
    assert distance.seconds == pytest.approx(0.03), "a way that grew is noticed"


async def test_a_call_measures_it_and_a_silent_worker_does_not() -> None:
    near, nowhere = Distance(), Distance()
    async with running_worker(FakeEngine()) as worker, rpc.channel(worker.endpoint) as channel:
        await near.measure(channel, 10.0)
    async with rpc.channel("127.0.0.1:1") as channel:
        await nowhere.measure(channel, 0.2)
    assert near._round_trips[0] > 0
    assert nowhere.seconds == 0.0
