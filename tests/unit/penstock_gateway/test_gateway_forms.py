"""Multipart forms and batch objects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.batch.v1 import batch_pb2
from penstock_core.errors import InvalidRequest
from penstock_gateway.batch_objects import batch_object, format_window, parse_window
from penstock_gateway.multipart import (
    MAX_FIELDS,
    FileBytes,
    FileStart,
    FormField,
    FormPart,
    FormReader,
)

BOUNDARY = b"XbX"


def form(*parts: tuple[bytes, bytes]) -> bytes:
    body = b""
    for disposition, content in parts:
        body += b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data; " + disposition
        body += b"\r\n\r\n" + content + b"\r\n"
    return body + b"--" + BOUNDARY + b"--\r\n"


def read(body: bytes, cuts: list[int]) -> list[FormPart]:
    """The parts of a form that arrives in pieces, with a file's bytes joined."""
    reader, parts = FormReader(BOUNDARY), list[FormPart]()
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        parts += reader.feed(body[start:end])
    reader.close()
    content = b"".join(part.data for part in parts if isinstance(part, FileBytes))
    return [p for p in parts if not isinstance(p, FileBytes)] + [FileBytes(content)]


@given(
    st.binary(max_size=60) | st.sampled_from([b"\r\n--XbX", b"\r\n--Xb", b"\r\n\r\n--", b"--XbX\r"]),
    st.data(),
)  # fmt: skip
def test_a_form_reads_the_same_however_it_is_cut(content: bytes, data: st.DataObject) -> None:
    if b"\r\n--" + BOUNDARY in b"\r\n" + content:
        content = b"x"
    body = form((b'name="purpose"', b"batch"), (b'name="file"; filename="a.jsonl"', content))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))

    assert read(body, cuts) == [
        FormField("purpose", "batch"),
        FileStart("file", "a.jsonl"),
        FileBytes(content),
    ]


def test_a_form_that_stops_in_the_middle_is_refused() -> None:
    body = form((b'name="file"; filename="a"', b"content"))
    reader = FormReader(BOUNDARY)
    reader.feed(body[:-4])

    with pytest.raises(InvalidRequest, match="ends in the middle"):
        reader.close()


@pytest.mark.parametrize(
    "body",
    [
        form(*[(b'name="x"', b"1")] * (MAX_FIELDS + 1)),
        form((b'name="x"', b"1" * 5000)),
        form((b'name="x"', b"\xff")),
        b"no form at all",
    ],
)
def test_forms_have_bounds(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        FormReader(BOUNDARY).feed(body)


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
