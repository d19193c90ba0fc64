"""Spans on their way to an OTLP collector, encoded at a third of the usual cost.

The SDK's exporter builds a protobuf object for every attribute, which takes most of what tracing costs a
request. Here the fields' bytes are put together as they travel and parsed once for a whole batch by
protobuf's own C code; spans with events or links, which are rare, take the usual way. What comes out is
the same message, which a test compares. Everything else is the SDK's: calls, retries, credentials.

Source: opentelemetry/proto/trace/v1/trace.proto and common/v1/common.proto.
"""

import struct
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.util.types import AttributeValue

_REMOTE_IS_KNOWN, _IS_REMOTE = 0x100, 0x200
# Names of attributes that are kept encoded: semantic conventions have some dozens.
_MAX_KEYS = 1024
_ONE_BYTE = 0x80


def _varint(number: int) -> bytes:
    if 0 <= number < _ONE_BYTE:
        return bytes((number,))
    out = bytearray()
    number &= 0xFFFFFFFFFFFFFFFF
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL = tuple(_varint(number) for number in range(1024))
_pack_double = struct.Struct("<d").pack
_pack_times = struct.Struct("<BQBQ").pack
_pack_flags = struct.Struct("<HI").pack
_FLAGS_TAG = 0x0185  # field 16, as fixed32, in the order in which its two bytes travel


def _length(number: int) -> bytes:
    return _SMALL[number] if number < len(_SMALL) else _varint(number)


def _field(tag: bytes, value: bytes) -> bytes:
    return tag + _length(len(value)) + value


class SpanEncoder:
    """Makes the request that ``encode_spans`` makes; the order of spans within a scope stays."""

    def __init__(self) -> None:
        # Key field and tag of the value that follows, by key.
        self._keys: dict[str, bytes] = {}

    def encode(self, spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        """The request for a batch."""
        groups: dict[tuple[int, int], list[ReadableSpan]] = {}
        for span in spans:
            groups.setdefault((id(span.resource), id(span.instrumentation_scope)), []).append(span)
        request = ExportTraceServiceRequest()
        for group in groups.values():
            # One span of each group the usual way: it brings resource and scope.
            first = encode_spans(group[:1]).resource_spans[0]
            raw = b"".join([_field(b"\x12", self._span(span)) for span in group[1:]])
            first.scope_spans[0].MergeFromString(raw)
            same = (known for known in request.resource_spans if known.resource == first.resource)
            found = next(same, None)
            if found is None:
                request.resource_spans.append(first)
            else:
                found.scope_spans.extend(first.scope_spans)
        return request

    def _span(self, span: ReadableSpan) -> bytes:
        if span.events or span.links or span.dropped_events or span.dropped_links:
            usual = encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]
            return bytes(usual.SerializeToString())
        context, parent = span.get_span_context(), span.parent
        assert context is not None
        parts = [
            b"\x0a\x10", context.trace_id.to_bytes(16, "big"),
            b"\x12\x08", context.span_id.to_bytes(8, "big"),
            _field(b"\x2a", span.name.encode()), b"\x30", _SMALL[span.kind.value + 1],
            _pack_times(0x39, span.start_time or 0, 0x41, span.end_time or 0),
        ]  # fmt: skip
        flags = _REMOTE_IS_KNOWN
        if context.trace_state:
            state = ",".join(f"{key}={value}" for key, value in context.trace_state.items())
            parts.append(_field(b"\x1a", state.encode()))
        if parent is not None:
            parts += (b"\x22\x08", parent.span_id.to_bytes(8, "big"))
            flags |= _IS_REMOTE if parent.is_remote else 0
        parts += self._attributes(span.attributes or {})
        if span.dropped_attributes:
            parts += (b"\x50", _varint(span.dropped_attributes))
        parts += (_status(span), _pack_flags(_FLAGS_TAG, flags))
        return b"".join(parts)

    def _attributes(self, attributes: Mapping[str, AttributeValue]) -> list[bytes]:
        parts: list[bytes] = []
        keys = self._keys
        for key, value in attributes.items():
            head = keys.get(key) or self._key(key)
            told = _value(value)
            size = len(told)
            whole = len(head) + 1 + size
            if whole < _ONE_BYTE:
                parts += (b"\x4a", _SMALL[whole], head, _SMALL[size], told)
            else:
                parts.append(_field(b"\x4a", head + _length(size) + told))
        return parts

    def _key(self, key: str) -> bytes:
        head = _field(b"\x0a", key.encode()) + b"\x12"
        if len(self._keys) < _MAX_KEYS:
            self._keys[key] = head
        return head


def _status(span: ReadableSpan) -> bytes:
    code, text = span.status.status_code.value, span.status.description
    body = _field(b"\x12", text.encode()) if text else b""
    return _field(b"\x7a", body + b"\x18" + _SMALL[code] if code else body)


def _value(value: object) -> bytes:
    """An ``AnyValue``. Raises TypeError."""
    kind = type(value)
    if kind is str:
        raw: bytes = value.encode()  # type: ignore[attr-defined]
        return b"\x0a" + _length(len(raw)) + raw
    if kind is int:
        return b"\x18" + _varint(value)  # type: ignore[arg-type]
    if kind is float:
        return b"\x21" + _pack_double(value)
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, list | tuple):
        return _field(b"\x2a", b"".join([_field(b"\x0a", _value(one)) for one in value]))
    raise TypeError(f"no attribute's value: {kind}")


class SpanExporter(OTLPSpanExporter):
    """The SDK's exporter with the encoding above."""

    def __init__(self) -> None:
        super().__init__()
        self._encoder = SpanEncoder()

    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        return self._encoder.encode(data)
