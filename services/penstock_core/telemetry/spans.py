"""Spans at a part of what the SDK's cost, for a process whose own code makes all of them.

The SDK's spans are ready for any caller: each has locks, checks and copies every value, keeps bounded
lists for events that never come, and asks the sampler again below a span that was sampled. Among all that
answers a request such code is never in the processor's caches, where it takes five times what a loop over it
shows; so what counts is that little is done here. Ours have the same interface, which is the API's, and
exporters read them as they read the SDK's, whose sampler, ids and resource are in use. What is given up: a
span belongs to one thread or task at a time, and values are taken as they are. So nothing is bounded here:
who sets one of OpenTelemetry's limits gets the SDK's own spans.

Must not know how spans are encoded or sent.
"""

import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TypeAlias

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)
from opentelemetry.util.types import Attributes, AttributeValue

_LIMITED = ("OTEL_ATTRIBUTE_", "OTEL_SPAN_", "OTEL_EVENT_", "OTEL_LINK_")


class Span(ReadableSpan, trace.Span):
    """A span that is recorded; how it is made is ``Tracer``'s business."""

    _attributes: dict[str, AttributeValue]
    # What most spans have nothing of is kept once for all. The rest is what ReadableSpan reads.
    _events: Sequence[Event] = ()
    _links: Sequence[Link] = ()
    _status = Status()
    _end_time: int | None = None
    _instrumentation_info = None

    def __init__(
        self,
        made_by: "Tracer",
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        start_time: int,
        attributes: dict[str, AttributeValue],
    ) -> None:
        # Not what the base class does: it takes longer over what is the same for all.
        self._made_by = made_by
        self._name = name
        self._context = context
        self._parent = parent
        self._kind = kind
        self._start_time = start_time
        self._attributes = attributes

    @property
    def resource(self) -> Resource:
        """Who made it."""
        return self._made_by.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        """Which part made it."""
        return self._made_by.scope

    def end(self, end_time: int | None = None) -> None:
        """The first call counts. Time in ns since 1970, now if none is given."""
        if self._end_time is None:
            self._end_time = time.time_ns() if end_time is None else end_time
            self._made_by.ended(self)

    def is_recording(self) -> bool:
        """Until it ends."""
        return self._end_time is None

    def get_span_context(self) -> SpanContext:
        """What the children of it and other processes need to know."""
        context = self._context
        assert context is not None
        return context

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one."""
        if self._end_time is None:
            self._attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set some."""
        if self._end_time is None:
            self._attributes.update(attributes)

    def update_name(self, name: str) -> None:
        """Replace the name."""
        if self._end_time is None:
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """OK is final, and nothing is set back to unset."""
        new = status if isinstance(status, Status) else Status(status, description)
        is_final = self._end_time is not None or self._status.status_code is StatusCode.OK
        if not is_final and new.status_code is not StatusCode.UNSET:
            self._status = new

    def add_event(
        self, name: str, attributes: Attributes = None, timestamp: int | None = None
    ) -> None:
        """Something that happened at one moment."""
        if self._end_time is None:
            self._events = (*self._events, Event(name, dict(attributes or {}), timestamp))

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Another span that this one has to do with."""
        if self._end_time is None and context.is_valid:
            self._links = (*self._links, Link(context, dict(attributes or {})))

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """An event named ``exception``, as the semantic conventions want it."""
        kind = type(exception)
        module = "" if kind.__module__ in ("", "builtins") else f"{kind.__module__}."
        told: dict[str, AttributeValue] = {
            "exception.type": module + kind.__qualname__,
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**told, **(attributes or {})}, timestamp)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """End it; an exception that leaves it is told first."""
        if error is not None:
            self.record_exception(error, escaped=True)
            self.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self.end()


Ended: TypeAlias = Callable[[Span], object]


class Tracer(trace.Tracer):
    """Makes the spans of one scope, with what the SDK's own tracer of that scope was given."""

    def __init__(self, given: sdk.Tracer, scope: InstrumentationScope, ended: Ended | None) -> None:
        self._given = given
        self._new_id = given.id_generator.generate_span_id
        self._is_heard = ended is not None
        self.ended: Ended = ended or _nobody
        self.scope = scope

    @property
    def resource(self) -> Resource:
        """The process."""
        return self._given.resource

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        """A span under the context's; that one again if it is of here and not sampled."""
        above = trace.get_current_span(context)
        parent = above.get_span_context()
        trace_id, _, is_remote, flags, state, is_valid = parent
        if is_remote or not is_valid:
            here, attributes = self._entered(parent, context, name, kind, attributes, links)
            flags = here.trace_flags
        elif not flags & TraceFlags.SAMPLED:
            return above
        else:
            # The SDK's samplers decide for a whole trace: below a sampled span there is nothing to ask.
            here = SpanContext(trace_id, self._new_id(), False, flags, state)
        if not (self._is_heard and flags & TraceFlags.SAMPLED):
            return NonRecordingSpan(here)
        began = time.time_ns() if start_time is None else start_time
        told = dict(attributes) if attributes else {}
        span = Span(self, name, here, parent if is_valid else None, kind, began, told)
        if links:
            span._links = tuple(links)
        return span

    @contextmanager
    def start_as_current_span(  # type: ignore[override] # noqa: PLR0913, PLR0917 - the API's, by a private decorator
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Iterator[trace.Span]:
        """A span that is the current one inside; an exception that leaves it is told."""
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with trace.use_span(span, end_on_exit, record_exception, set_status_on_exception):
            yield span

    def _entered(
        self,
        parent: SpanContext,
        context: Context | None,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        links: Sequence[Link] | None,
    ) -> tuple[SpanContext, Attributes]:
        """What a trace's first span in this process is called by, and its attributes."""
        ids = self._given.id_generator
        if parent.is_valid:
            trace_id, is_random = parent.trace_id, parent.trace_flags.random_trace_id
        else:
            trace_id, is_random = ids.generate_trace_id(), ids.is_trace_id_random()
        said = self._given.sampler.should_sample(context, trace_id, name, kind, attributes, links)
        flags = (
            TraceFlags.SAMPLED
            if said.decision is Decision.RECORD_AND_SAMPLE
            else TraceFlags.DEFAULT
        )
        flags |= TraceFlags.RANDOM_TRACE_ID if is_random else TraceFlags.DEFAULT
        here = SpanContext(trace_id, self._new_id(), False, TraceFlags(flags), said.trace_state)
        return here, said.attributes


class TracerProvider(sdk.TracerProvider):
    """The SDK's, whose tracers make the spans above.

    Args:
        ended: takes each span that has ended, and does so at once; the processors get none of these. Without it
            spans are no more than their ids.
    """

    def __init__(self, resource: Resource, ended: Ended | None = None) -> None:
        super().__init__(resource=resource)
        self._ended = ended

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        """A tracer; the SDK's own where it is switched off or limits are set."""
        name, version = instrumenting_module_name, instrumenting_library_version or ""
        given = super().get_tracer(name, version, schema_url, attributes)
        if not isinstance(given, sdk.Tracer) or _is_limited():
            return given
        return Tracer(
            given, InstrumentationScope(name, version, schema_url, attributes), self._ended
        )


def _is_limited() -> bool:
    return any(name.startswith(_LIMITED) and name.endswith("_LIMIT") for name in os.environ)


def _nobody(_span: Span) -> None:
    """Hears of no span, since none is recorded."""
