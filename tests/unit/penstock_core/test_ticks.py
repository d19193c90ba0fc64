"""Ticks are at the same times for everybody who shares a clock."""

import pytest

from penstock_core.rpc.ticks import TICK_S, until_tick_s


@pytest.mark.parametrize("since_s", [0.0, 0.001, 0.0199])
def test_everybody_waits_for_the_same_tick(since_s: float) -> None:
    last = 12_345 * TICK_S
    assert last + since_s + until_tick_s(last + since_s) == pytest.approx(last + TICK_S)


def test_ticks_that_are_no_time_apart_are_not_waited_for() -> None:
    assert until_tick_s(1.234, 0.0) == 0.0
