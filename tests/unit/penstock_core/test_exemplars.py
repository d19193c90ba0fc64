"""The last traced measurement of each bucket stands for it, as it would with the SDK's reservoir."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import (
    AlignedHistogramBucketExemplarReservoir,
    Exemplar,
    ExemplarReservoir,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from penstock_core.telemetry.exemplars import LatestExemplars

BOUNDS = (0.1, 0.5, 2.0)


def traced(number: int) -> Context:
    span = SpanContext(number, number + 1, is_remote=False, trace_flags=TraceFlags(1))
    return trace.set_span_in_context(NonRecordingSpan(span))


def offered(reservoir: ExemplarReservoir, values: Sequence[float]) -> list[Exemplar]:
    for number, value in enumerate(values, start=1):
        reservoir.offer(value, number, {"model": "m", "extra": number}, traced(number))
    return list(reservoir.collect({"model": "m"}))


@given(st.lists(st.sampled_from([*BOUNDS, 0.0, 0.05, 0.3, 1.0, 9.0]) | st.floats(0, 10)))
def test_the_same_are_kept_as_the_sdk_keeps(values: list[float]) -> None:
    theirs = AlignedHistogramBucketExemplarReservoir(BOUNDS)
    assert offered(LatestExemplars(BOUNDS), values) == offered(theirs, values)


def test_a_collection_begins_anew() -> None:
    reservoir = LatestExemplars(boundaries=BOUNDS)
    assert len(offered(reservoir, [0.2, 0.3, 0.7])) == 2
    assert offered(reservoir, []) == []


def test_without_bounds_the_last_one_is_kept() -> None:
    (kept,) = offered(LatestExemplars(), [1.0, 5.0, 3.0])
    assert (kept.value, kept.trace_id, kept.filtered_attributes) == (3.0, 3, {"extra": 3})


@pytest.mark.parametrize("attributes", [None, {}])
def test_outside_a_trace_it_points_nowhere(attributes: dict[str, str] | None) -> None:
    reservoir = LatestExemplars(BOUNDS)
    reservoir.offer(0.2, 1, attributes, Context())
    (kept,) = reservoir.collect(attributes)
    assert (kept.trace_id, kept.span_id, kept.value) == (None, None, 0.2)
