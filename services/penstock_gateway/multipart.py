"""A multipart form read as it arrives: small fields as values, the file as pieces. No IO.

Bytes in, parts out; nothing larger than one piece is held.
"""

from dataclasses import dataclass
from typing import TypeAlias

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from penstock_core.errors import InvalidRequest

MAX_FIELD_BYTES = 4096
MAX_FIELDS = 16


@dataclass(frozen=True, slots=True)
class FormField:
    """A field that is no file."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class FileStart:
    """A file begins; its bytes follow."""

    name: str
    filename: str


@dataclass(frozen=True, slots=True)
class FileBytes:
    """The next bytes of the file."""

    data: bytes


FormPart: TypeAlias = FormField | FileStart | FileBytes


def boundary_of(content_type: str) -> bytes:
    """The boundary that a multipart body is cut by. Raises InvalidRequest if none is declared."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidRequest("the multipart body declares no boundary")
    return boundary


class FormReader:
    """Parses one form. Feed it bytes, then ``close`` it."""

    def __init__(self, boundary: bytes) -> None:
        self._parts: list[FormPart] = []
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._field: str | None = None
        self._value = bytearray()
        self._fields = 0
        self._ended = False
        try:
            self._parser = MultipartParser(boundary, self._callbacks())  # type: ignore[arg-type]
        except FormParserError as error:
            raise InvalidRequest(f"the multipart body is malformed: {error}") from error

    def feed(self, data: bytes) -> list[FormPart]:
        """The parts that these bytes completed. Raises InvalidRequest on a malformed form."""
        self._parts = []
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest(f"the multipart body is malformed: {error}") from error
        return self._parts

    def close(self) -> None:
        """Raise InvalidRequest if the form did not come to its end."""
        if not self._ended:
            raise InvalidRequest("the multipart body ends in the middle")

    def _callbacks(self) -> dict[str, object]:
        return {
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._check_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header_name) + len(self._header_value) > MAX_FIELD_BYTES:
            raise InvalidRequest("a header of a form field is too long")

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise InvalidRequest(f"the form has more than {MAX_FIELDS} fields")
        _, options = parse_options_header(self._disposition)
        self._disposition = b""
        name = _decoded(options.get(b"name", b""))
        if b"filename" in options:
            self._field = None
            self._parts.append(FileStart(name, _decoded(options[b"filename"])))
        else:
            self._field = name
            self._value.clear()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._parts.append(FileBytes(data[start:end]))
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise InvalidRequest("a form field is too long", field=self._field)

    def _on_part_end(self) -> None:
        if self._field is not None:
            self._parts.append(FormField(self._field, _decoded(bytes(self._value))))

    def _on_end(self) -> None:
        self._ended = True


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("the form is no UTF-8") from error
