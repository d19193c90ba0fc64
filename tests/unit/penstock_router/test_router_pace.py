"""How forwarded streams share a budget of messages, and when a breaker opens."""

import pytest

from penstock_router.fleet.breaker import FAILURES_TO_OPEN, STALLS_TO_OPEN, Breaker
from penstock_router.proxy.pace import Pace


@pytest.mark.parametrize(
    ("streams", "delay_ms"), [(0, 10), (5, 10), (13, 40), (50, 100), (51, 120), (5000, 200)]
)
def test_the_more_streams_the_more_tokens_share_a_message(streams: int, delay_ms: int) -> None:
    assert Pace(500, 200, streams).coalescing().max_delay_ms == delay_ms


def test_all_streams_of_a_router_share_what_the_latest_asks_for() -> None:
    asked = Pace(500, 200, 50, group="pace_1").coalescing()
    assert (asked.group, asked.max_delay_ms, asked.max_tokens) == ("pace_1", 100, 32)


def test_few_streams_are_hardly_held_back() -> None:
    assert Pace(500, 200, 1).coalescing().max_tokens == 8


def test_three_stalled_streams_open_a_breaker() -> None:
    breaker = Breaker()
    for _ in range(STALLS_TO_OPEN - 1):
        breaker.stalled(0.0)
    assert not breaker.is_open(0.0)
    breaker.stalled(0.0)
    assert breaker.is_open(0.0)


def test_all_streams_of_one_dead_worker_are_one_failure_of_it() -> None:
    breaker = Breaker()
    for _ in range(200):
        breaker.failed(0.0)
    assert breaker.is_open(9.9)
    assert not breaker.is_open(10.0), "the pause is the first, not doubled by each stream"


def test_a_restarted_worker_starts_with_a_closed_breaker() -> None:
    breaker = Breaker()
    breaker.seen("epoch-1")
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(0.0)
    breaker.seen("epoch-1")
    assert breaker.is_open(0.0)
    breaker.seen("epoch-2")
    assert not breaker.is_open(0.0)
