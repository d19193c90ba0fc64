"""OpenAI's batch object and completion window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.batch.v1 import batch_pb2
from penstock_core.errors import InvalidRequest
from penstock_openai.batch_objects import batch_object, format_window, parse_window


@given(st.integers(1, 10_000_000))
def test_a_window_that_was_shown_means_the_same(seconds: int) -> None:
    text = format_window(seconds)

    if len(text) <= 8:
        assert parse_window(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "0h", "-1h", "24H", "24h ", "1d", "٢h", "9" * 9])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="completion_window"):
        parse_window(text)


def test_a_day_is_written_as_openai_writes_it() -> None:
    assert format_window(parse_window("24h")) == "24h"


def test_every_state_of_a_batch_has_openais_name() -> None:
    names = {
        batch_object(batch_pb2.Batch(status=status))["status"]
        for status in batch_pb2.BatchStatus.values()
        if status != batch_pb2.BATCH_STATUS_UNSPECIFIED
    }

    assert names == {
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    }


def test_states_that_were_never_entered_have_no_time() -> None:
    batch = batch_pb2.Batch(status=batch_pb2.BATCH_STATUS_IN_PROGRESS)
    batch.times.created, batch.times.in_progress = 5, 6

    rendered = batch_object(batch)

    assert (rendered["created_at"], rendered["in_progress_at"]) == (5, 6)
    assert rendered["completed_at"] is None
    assert rendered["errors"] is None
    assert rendered["usage"] is None


def test_a_batch_tells_its_cost_among_our_own_fields() -> None:
    batch = batch_pb2.Batch()
    assert "cost" not in batch_object(batch)["penstock"]  # type: ignore[operator]
    batch.cost.micros, batch.cost.currency = 7, "USD"
    batch.cost.prefill_s, batch.cost.decode_s = 1.0, 2.0

    cost = batch_object(batch)["penstock"]["cost"]  # type: ignore[index]
    assert cost == {"micros": 7, "currency": "USD", "prefill_s": 1.0, "decode_s": 2.0}
