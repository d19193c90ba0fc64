"""A real OTLP receiver: what processes export over gRPC, kept for tests to look at."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2

_MAX_MESSAGE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span. Ids are hex; ``links`` are the trace ids it links to."""

    service: str
    instance: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, object]
    links: tuple[str, ...]
    failed: bool


@dataclass
class OtlpReceiver:
    """What arrived so far. ``endpoint`` is fit for OTEL_EXPORTER_OTLP_ENDPOINT."""

    endpoint: str = ""
    _spans: list[ReceivedSpan] = field(default_factory=list)
    _metrics: set[tuple[str, str]] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """The spans of a trace, by start."""
        with self._changed:
            found = [span for span in self._spans if span.trace_id == trace_id]
        return sorted(found, key=lambda span: span.start_ns)

    def spans(self) -> list[ReceivedSpan]:
        """Every span, in the order of arrival."""
        with self._changed:
            return list(self._spans)

    def metrics(self) -> set[tuple[str, str]]:
        """Pairs of service and metric name."""
        with self._changed:
            return set(self._metrics)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
        """Whether the condition came true in time; asked whenever something arrives."""
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    def add_spans(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        """Keep what a process exported."""
        spans = [
            _received(_attributes(resource.resource.attributes), span)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._changed:
            self._spans += spans
            self._changed.notify_all()

    def add_metrics(self, request: metrics_service_pb2.ExportMetricsServiceRequest) -> None:
        """Keep the names of what a process measured."""
        names = {
            (str(_attributes(resource.resource.attributes).get("service.name")), metric.name)
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        with self._changed:
            self._metrics |= names
            self._changed.notify_all()


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """A receiver on a free port of the loopback, gone afterwards."""
    # The lock of a Condition is reentrant, so conditions may call the receiver's own methods.
    receiver = OtlpReceiver()
    with ThreadPoolExecutor(max_workers=4) as threads:
        server = grpc.server(
            threads, options=[("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
        )
        # OpenTelemetry's generated stubs are not typed.
        add_traces: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add_metrics: Any = metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server
        add_traces(_Traces(receiver), server)
        add_metrics(_Metrics(receiver), server)
        receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield receiver
        finally:
            server.stop(None).wait()


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self._receiver.add_spans(request)
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self._receiver.add_metrics(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


def _received(resource: dict[str, object], span: Any) -> ReceivedSpan:
    return ReceivedSpan(
        service=str(resource.get("service.name", "")),
        instance=str(resource.get("service.instance.id", "")),
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        links=tuple(link.trace_id.hex() for link in span.links),
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
    )


def _attributes(pairs: Any) -> dict[str, object]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
