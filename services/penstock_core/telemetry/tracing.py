"""W3C trace context through gRPC metadata, and spans made from timestamps afterwards."""

from collections.abc import Iterable, Mapping

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.util.types import AttributeValue

Metadata = tuple[tuple[str, str], ...]


def outgoing(*pairs: tuple[str, str], span: Span | None = None) -> Metadata:
    """Metadata for a call: the given pairs and the trace context, of ``span`` or the current one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, None if span is None else trace.set_span_in_context(span))
    return (*pairs, *carrier.items())


def incoming(headers: Mapping[str, str]) -> Context:
    """The trace context that a request's metadata or headers carry."""
    return propagate.extract(headers)


def link_to(carrier: Mapping[str, str]) -> list[Link]:
    """A link to the span in a carrier; none if it holds no valid one."""
    context = trace.get_current_span(propagate.extract(carrier)).get_span_context()
    return [Link(context)] if context.is_valid else []


def record_span(
    tracer: trace.Tracer,
    name: str,
    start_unix_s: float,
    end_unix_s: float,
    attributes: Mapping[str, AttributeValue],
) -> None:
    """A span for a phase that is over, under the current span: nothing is spent while it runs."""
    span = tracer.start_span(
        name, kind=SpanKind.INTERNAL, start_time=int(start_unix_s * 1e9), attributes=attributes
    )
    span.end(int(end_unix_s * 1e9))


def trace_id(span: Span) -> str:
    """The id in hex of a span's trace; empty outside a trace."""
    context = span.get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else ""


def set_attributes(span: Span, pairs: Iterable[tuple[str, AttributeValue | None]]) -> None:
    """Set those attributes that have a value, at once: each call takes the span's lock."""
    span.set_attributes({key: value for key, value in pairs if value is not None})
