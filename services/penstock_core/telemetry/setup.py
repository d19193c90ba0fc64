"""Traces and metrics of one process; the only importer of OpenTelemetry's SDK.

Everything else uses the API through ``opentelemetry.trace`` and ``opentelemetry.metrics``, which
do nothing until ``start`` ran. OTLP goes out when ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set, metrics too
unless ``OTEL_METRICS_EXPORTER`` is ``none`` (then each is summed up once only); the Prometheus scrape
endpoint is always there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from prometheus_client import REGISTRY, start_http_server

from penstock_core.security.tls import PLAIN, Tls
from penstock_core.telemetry.exemplars import LatestExemplars
from penstock_core.telemetry.exposition import ExemplarReader, Exposition
from penstock_core.telemetry.semconv import BUCKETS
from penstock_core.telemetry.span_export import DELAY_S, SpanExporter, SpanSender
from penstock_core.telemetry.spans import TracerProvider
from penstock_core.version import VERSION


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What runs for a process.

    Attributes:
        metrics_port: where Prometheus scrapes; 0 if nowhere.
        exposition: what it gets, for a process that serves HTTP itself.
    """

    metrics_port: int
    exposition: Exposition


@contextmanager
def start(
    service: str, *, instance: str = "", metrics_listen: str = "", tls: Tls = PLAIN
) -> Iterator[Telemetry]:
    """Trace and measure this process until the context ends; what is buffered is flushed then.

    Args:
        service: name of the process kind, e.g. ``penstock-router``.
        instance: tells processes of one kind apart, e.g. the worker's id.
        metrics_listen: ``host:port`` of the scrape endpoint (port 0 picks one); empty for none.
        tls: encrypts the scrape endpoint if it has a certificate.
    """
    attributes = {"service.name": service, "service.version": VERSION}
    if instance:
        attributes["service.instance.id"] = instance
    resource = Resource.create(attributes)
    exports = bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    sender = SpanSender(SpanExporter(), _delay_s()) if exports else None
    tracer_provider = TracerProvider(resource, sender.take if sender else None)
    exposition = Exposition(REGISTRY, ExemplarReader(REGISTRY))
    readers: list[MetricReader] = [exposition.reader]
    if sender is not None:
        tracer_provider.add_span_processor(sender)
        if os.environ.get("OTEL_METRICS_EXPORTER") != "none":
            readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    meter_provider = MeterProvider(resource=resource, metric_readers=readers, views=_views())
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(meter_provider)
    server, port = None, 0
    if metrics_listen:
        host, _, wanted = metrics_listen.rpartition(":")
        server, _thread = start_http_server(
            int(wanted),
            addr=host,
            registry=exposition,
            certfile=tls.cert or None,
            keyfile=tls.key or None,
            client_cafile=tls.ca if tls.client_auth else None,
            client_auth_required=tls.client_auth,
        )
        port = server.server_port
    try:
        yield Telemetry(port, exposition)
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()
        tracer_provider.shutdown()
        meter_provider.shutdown()


def _delay_s() -> float:
    return float(os.environ.get("OTEL_BSP_SCHEDULE_DELAY") or 1e3 * DELAY_S) / 1e3


def _views() -> list[View]:
    histograms = [
        View(
            instrument_name=name,
            aggregation=ExplicitBucketHistogramAggregation(boundaries),
            exemplar_reservoir_factory=_exemplars,
        )
        for name, boundaries in BUCKETS.items()
    ]
    return [*histograms, View(instrument_type=Counter, exemplar_reservoir_factory=_exemplars)]


def _exemplars(_aggregation: object) -> type[LatestExemplars]:
    return LatestExemplars
