"""Attribution of shared time: whatever comes and goes, the parts add up to the time that was busy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_engine.sharing import Part, Sharing

STEP_TOKENS = 64
WAITS = st.floats(0, 10, allow_nan=False)
ACTION = st.tuples(
    WAITS, st.sampled_from(["enter", "decode", "look", "leave"]), st.integers(0, 500)
)


@given(st.lists(ACTION, max_size=60))
def test_parts_add_up_to_the_busy_time(actions: list[tuple[float, str, int]]) -> None:
    sharing, now, busy_s, gone_s = Sharing(STEP_TOKENS), 0.0, 0.0, 0.0
    inside: list[Part] = []
    for wait, action, number in actions:
        now += wait
        busy_s += wait if inside else 0.0
        if action == "enter":
            inside.append(sharing.enter(number, now))
        elif inside:
            part = inside[number % len(inside)]
            if action == "decode":
                sharing.decodes(part, now)
            elif action == "look":
                sharing.add_up(part, now)
            else:
                inside.remove(part)
                gone_s += sharing.leave(part, now).seconds
    gone_s += sum(sharing.leave(part, now).seconds for part in inside)

    assert sharing.busy_s(now + 100) == pytest.approx(busy_s)
    assert gone_s == pytest.approx(busy_s)


def test_time_goes_by_the_tokens_in_a_step() -> None:
    sharing = Sharing(STEP_TOKENS)
    decoding = sharing.enter(10, 0.0)
    sharing.decodes(decoding, 1.0)
    long = sharing.enter(100_000, 1.0)

    share = sharing.leave(decoding, 66.0)
    assert share.prefill_s == pytest.approx(1.0)
    assert share.decode_s == pytest.approx(1.0)
    assert sharing.leave(long, 66.0).prefill_s == pytest.approx(64.0)


def test_who_left_takes_nothing_more() -> None:
    sharing = Sharing(STEP_TOKENS)
    part = sharing.enter(1, 0.0)
    sharing.leave(part, 2.0)

    assert sharing.leave(part, 9.0).seconds == pytest.approx(2.0)
    assert sharing.busy_s(9.0) == pytest.approx(2.0)
