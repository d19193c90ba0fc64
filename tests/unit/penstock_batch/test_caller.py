"""What counts as the answer to a line's prompt."""

import pytest

from penstock.inference.v1 import generate_pb2
from penstock_batch.running.caller import check_whole
from penstock_core.errors import Evicted, WorkerLost

Event = generate_pb2.GenerateResponse
DELTA = Event(delta=generate_pb2.Delta(text="x"))
COMPLETED = Event(completed=generate_pb2.Completed())


def finished(reason: "generate_pb2.FinishReason.ValueType") -> Event:
    return Event(finished=generate_pb2.Finished(reason=reason))


def test_a_generation_that_came_to_its_end_is_an_answer() -> None:
    check_whole([DELTA, finished(generate_pb2.FINISH_REASON_STOP), COMPLETED])


def test_an_aborted_generation_is_none() -> None:
    with pytest.raises(Evicted, match="aborted"):
        check_whole([DELTA, finished(generate_pb2.FINISH_REASON_ABORTED), COMPLETED])


@pytest.mark.parametrize("events", [[], [DELTA]])
def test_half_a_stream_is_none(events: list[Event]) -> None:
    with pytest.raises(WorkerLost):
        check_whole(events)
