"""Spans on their way to an OTLP collector, many at once.

The SDK's exporter builds a protobuf object for every attribute. Here the fields' bytes are put together as they
travel and parsed once for a whole batch by protobuf's own C code; spans with events or links, which are rare, take
the usual way. What comes out is the same message, which a test compares. A span that ends is only put into a
queue: one by one among all else, encoding would take five times as long as in a row. Calls, retries and credentials
are the SDK's.

Source: opentelemetry/proto/trace/v1/trace.proto and common/v1/common.proto.
"""

import logging
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

logger = logging.getLogger(__name__)

# How often it is looked whether many wait. Each export is a call of its own, which costs as much as 100 spans.
_LOOK_S, DELAY_S = 1.0, 5.0
_BATCH, _MAX_WAITING = 512, 8192
_LAST_SEND_S = 30.0
# Beginnings of attributes that are kept encoded: a few dozen keys, with values of a few lengths each.
_MAX_HEADS = 4096
_MAX_NAMES, _MAX_PLACES = 256, 64
_REMOTE_IS_KNOWN, _IS_REMOTE = 0x100, 0x200


_Place: TypeAlias = tuple[Resource, InstrumentationScope | None, ResourceSpans]


def _varint(number: int) -> bytes:
    out = bytearray()
    number &= 0xFFFFFFFFFFFFFFFF
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL = tuple(_varint(number) for number in range(1024))
_INTEGERS = tuple(b"\x18" + raw for raw in _SMALL)
_STRINGS = tuple(b"\x0a" + raw for raw in _SMALL)
_KINDS = {kind: b"\x30" + _SMALL[kind.value + 1] for kind in SpanKind}
_UNSET = b"\x7a\x00"
_pack_double = struct.Struct("<Bd").pack
_pack_item = struct.Struct("<HBd").pack
_pack_times = struct.Struct("<BQBQ").pack
_pack_ids = struct.Struct("<H16sH8s").pack
_TRACE_ID, _SPAN_ID = 0x100A, 0x0812  # tag and length, in the order in which they travel
_DOUBLE_ITEM = 0x090A
_FLAGS = {flags: struct.pack("<HI", 0x0185, flags) for flags in (0x100, 0x300)}


def _length(number: int) -> bytes:
    return _SMALL[number] if number < len(_SMALL) else _varint(number)


def _field(tag: bytes, value: bytes) -> bytes:
    return tag + _length(len(value)) + value


class SpanEncoder:
    """Makes the request that ``encode_spans`` makes; the order of spans within a scope stays."""

    def __init__(self) -> None:
        # What comes before the value of an attribute of this key whose encoded value is so long.
        self._heads: dict[tuple[str, int], bytes] = {}
        self._names: dict[str, bytes] = {}
        self._places: dict[tuple[int, int], _Place] = {}

    def encode(self, spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        """The request for a batch."""
        groups: dict[tuple[int, int], list[ReadableSpan]] = {}
        for span in spans:
            groups.setdefault((id(span.resource), id(span.instrumentation_scope)), []).append(span)
        request = ExportTraceServiceRequest()
        for group in groups.values():
            first = ResourceSpans()
            first.CopyFrom(self._place(group[0]))
            first.scope_spans[0].MergeFromString(b"".join([self._span(span) for span in group]))
            same = (known for known in request.resource_spans if known.resource == first.resource)
            found = next(same, None)
            if found is None:
                request.resource_spans.append(first)
            else:
                found.scope_spans.extend(first.scope_spans)
        return request

    def _place(self, span: ReadableSpan) -> ResourceSpans:
        """Resource and scope of a span, without spans."""
        key = id(span.resource), id(span.instrumentation_scope)
        kept = self._places.get(key)
        if kept is None:
            place = encode_spans([span]).resource_spans[0]
            place.scope_spans[0].ClearField("spans")
            if len(self._places) == _MAX_PLACES:
                self._places.clear()
            # Kept with what it was made from, whose ids would else be given to others.
            kept = self._places[key] = (span.resource, span.instrumentation_scope, place)
        return kept[2]

    def _span(self, span: ReadableSpan) -> bytes:
        """One span as a field of its scope."""
        if span.events or span.links or span.dropped_events or span.dropped_links:
            usual = encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]
            return _field(b"\x12", usual.SerializeToString())
        context = span.get_span_context()
        assert context is not None
        name = span.name
        parts = [
            _pack_ids(
                _TRACE_ID, context.trace_id.to_bytes(16, "big"),
                _SPAN_ID, context.span_id.to_bytes(8, "big"),
            ),
            self._names.get(name) or self._name(name),
            _KINDS[span.kind],
            _pack_times(0x39, span.start_time or 0, 0x41, span.end_time or 0),
            _relations(context, span.parent),
        ]  # fmt: skip
        self._add(parts, span.attributes or {})
        if span.dropped_attributes:
            parts += (b"\x50", _varint(span.dropped_attributes))
        parts.append(_status(span))
        return _field(b"\x12", b"".join(parts))

    def _add(self, parts: list[bytes], attributes: Mapping[str, AttributeValue]) -> None:
        heads = self._heads
        for key, value in attributes.items():
            told = _value(value)
            place = key, len(told)
            parts += (heads.get(place) or self._head(place), told)

    def _head(self, place: tuple[str, int]) -> bytes:
        key, size = place
        inner = _field(b"\x0a", key.encode()) + b"\x12" + _length(size)
        head = b"\x4a" + _length(len(inner) + size) + inner
        if len(self._heads) < _MAX_HEADS:
            self._heads[place] = head
        return head

    def _name(self, name: str) -> bytes:
        encoded = _field(b"\x2a", name.encode())
        if len(self._names) < _MAX_NAMES:
            self._names[name] = encoded
        return encoded


def _relations(context: SpanContext, parent: SpanContext | None) -> bytes:
    """Parent, flags and the state that vendors gave the trace."""
    state = b""
    if context.trace_state:
        pairs = ",".join(f"{key}={value}" for key, value in context.trace_state.items())
        state = _field(b"\x1a", pairs.encode())
    if parent is None:
        return state + _FLAGS[_REMOTE_IS_KNOWN]
    flags = _FLAGS[_REMOTE_IS_KNOWN | _IS_REMOTE if parent.is_remote else _REMOTE_IS_KNOWN]
    return state + b"\x22\x08" + parent.span_id.to_bytes(8, "big") + flags


def _status(span: ReadableSpan) -> bytes:
    code, text = span.status.status_code, span.status.description
    if code is StatusCode.UNSET and not text:
        return _UNSET
    body = _field(b"\x12", text.encode()) if text else b""
    return _field(b"\x7a", body + b"\x18" + _SMALL[code.value] if code.value else body)


def _value(value: object) -> bytes:
    """An ``AnyValue``; what is no attribute's value goes as its text, as the SDK has it."""
    kind = type(value)
    if kind is str:
        raw: bytes = value.encode()  # type: ignore[attr-defined]
        size = len(raw)
        return (_STRINGS[size] if size < len(_STRINGS) else b"\x0a" + _varint(size)) + raw
    if kind is int:
        return _integer(value)  # type: ignore[arg-type]
    if kind is float:
        return _pack_double(0x21, value)
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if kind is list or kind is tuple:
        return _field(b"\x2a", b"".join([_item(one) for one in value]))  # type: ignore[attr-defined]
    return _unusual(value)


def _integer(value: int) -> bytes:
    return _INTEGERS[value] if 0 <= value < len(_INTEGERS) else b"\x18" + _varint(value)


def _item(value: object) -> bytes:
    if type(value) is float:
        return _pack_item(_DOUBLE_ITEM, 0x21, value)
    return _field(b"\x0a", _value(value))


def _unusual(value: object) -> bytes:
    """Kinds derived from the usual ones, and what is none of them."""
    if value is None:
        return b""
    if isinstance(value, int):
        return _integer(int(value))
    if isinstance(value, float):
        return _pack_double(0x21, value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value).SerializeToString()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _value(list(value))
    return _value(str.__str__(value) if isinstance(value, str) else str(value))


class SpanExporter(OTLPSpanExporter):
    """The SDK's exporter with the encoding above."""

    def __init__(self) -> None:
        super().__init__()
        self._encoder = SpanEncoder()

    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        return self._encoder.encode(data)


class SpanSender(SpanProcessor):
    """Keeps spans that have ended, and sends them together from a thread of its own.

    ``take`` is ``on_end`` for spans that are known to be sampled, and costs nothing: it is the queue's.
    """

    def __init__(self, exporter: OTLPSpanExporter, delay_s: float = DELAY_S) -> None:
        """Args: ``delay_s`` is how late a few spans may be; many leave earlier."""
        self._exporter = exporter
        self._looks = max(round(delay_s / _LOOK_S), 1)
        self._waiting: deque[ReadableSpan] = deque(maxlen=_MAX_WAITING)
        self.take: Callable[[ReadableSpan], None] = self._waiting.append
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="penstock-spans", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """A span of the SDK's has ended."""
        context = span.get_span_context()
        if context is not None and context.trace_flags.sampled:
            self.take(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits, now; each batch has the exporter's own timeout."""
        self._send()
        return True

    def shutdown(self) -> None:
        """Send what waits, then no more."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join(_LAST_SEND_S)
        self._exporter.shutdown()

    def _run(self) -> None:
        looks = 0
        while not self._stop.wait(_LOOK_S):
            looks += 1
            if looks >= self._looks or len(self._waiting) >= _BATCH:
                looks = 0
                self._send()
        self._send()

    def _send(self) -> None:
        waiting = self._waiting
        with self._sending:
            if len(waiting) == _MAX_WAITING:
                logger.warning("spans were lost: %d wait and are not taken", _MAX_WAITING)
            while waiting:
                batch = [waiting.popleft() for _ in range(min(len(waiting), _BATCH))]
                try:
                    self._exporter.export(batch)
                except Exception:  # one batch less must not end all tracing
                    logger.exception("%d spans could not be sent", len(batch))
