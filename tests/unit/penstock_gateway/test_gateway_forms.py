"""Multipart forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_core.errors import InvalidRequest
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
