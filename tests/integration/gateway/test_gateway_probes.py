"""Probes and metrics tell what is so, with and without API keys."""

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from penstock_core.rpc.channels import channel
from penstock_core.security.auth import KeyRing, Principal, digest
from penstock_core.telemetry.exposition import ExemplarReader, Exposition
from penstock_gateway.app import Upstreams, build_app
from penstock_gateway.gate import Gate
from penstock_gateway.settings import GatewaySettings
from penstock_gateway.upstream import RouterClient
from penstock_testing.processes.ports import free_port
from penstock_testing.servers.gateway import running_gateway
from penstock_testing.servers.memory_batches import Stored, running_batches
from penstock_testing.servers.scripted_router import MODEL, Script, running_router


async def test_without_a_router_it_is_alive_but_not_ready() -> None:
    async with (
        running_gateway(f"127.0.0.1:{free_port()}") as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        alive, ready = await http.get("/healthz"), await http.get("/readyz")
        asked = await http.post("/v1/completions", json={"model": MODEL, "prompt": "x"})

    assert alive.status_code == 200
    assert (ready.status_code, asked.status_code) == (503, 503)
    assert asked.json()["error"]["code"] == "unavailable"


@pytest.mark.parametrize(("models", "status"), [((MODEL,), 200), ((), 503)])
async def test_ready_means_that_a_model_is_served(models: tuple[str, ...], status: int) -> None:
    async with (
        running_router(Script(models=models)) as router,
        running_gateway(router) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        assert (await http.get("/readyz")).status_code == status


async def test_probes_need_no_key_where_requests_do() -> None:
    keys = KeyRing({digest("pk"): Principal("acme")})
    async with (
        running_router(Script(), keys) as router,
        running_gateway(router) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        assert (await http.get("/readyz")).status_code == 200
        refused = await http.get("/v1/models")
        allowed = await http.get("/v1/models", headers={"authorization": "Bearer pk"})

    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert allowed.status_code == 200


async def test_an_upload_with_a_wrong_key_is_a_401_however_large() -> None:
    keys = KeyRing({digest("pk"): Principal("acme")})
    async with (
        running_batches(Stored(), keys) as batch,
        running_gateway(batch, batch) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        files = {"file": ("x", b"y" * 4_000_000)}
        answers = [
            await http.post("/v1/files", files=files, data={"purpose": "batch"}) for _ in range(5)
        ]

    assert [answer.status_code for answer in answers] == [401] * 5


async def test_without_a_batch_service_there_are_no_batch_paths() -> None:
    async with (
        running_router(Script()) as router,
        running_gateway(router) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        assert (await http.get("/v1/files")).status_code == 404
        assert (await http.get("/v1/batches")).status_code == 404


async def test_metrics_come_as_plain_text_or_as_openmetrics_with_exemplars() -> None:
    registry = CollectorRegistry()
    exposition = Exposition(registry, ExemplarReader(registry))
    meters, tracers = MeterProvider([exposition.reader]), TracerProvider()
    latency = meters.get_meter("test").create_histogram("a.latency", unit="s")
    latency.record(0.1, {"to": "untraced"})
    with tracers.get_tracer("test").start_as_current_span("request") as span:
        for seconds in (0.3, 7.0):
            latency.record(seconds, {"to": "traced"})
    trace_id = format(span.get_span_context().trace_id, "032x")
    app = build_app(
        Upstreams(RouterClient(channel("127.0.0.1:1"), 1.0), None, exposition),
        Gate(1),
        GatewaySettings(),
    )
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        wanted = {"accept": "application/openmetrics-text;version=1.0.0"}
        told = await http.get("/metrics", headers=wanted)
        plain = await http.get("/metrics")
    meters.shutdown()
    tracers.shutdown()

    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "trace_id" not in plain.text
    assert told.headers["content-type"].startswith("application/openmetrics-text")
    families = {f.name: f for f in text_string_to_metric_families(told.text)}  # type: ignore[no-untyped-call]
    pointing = [s for s in families["a_latency_seconds"].samples if s.exemplar is not None]
    assert [(s.labels["to"], s.exemplar.value) for s in pointing] == [
        ("traced", 0.3),
        ("traced", 7.0),
    ]
    assert {s.exemplar.labels["trace_id"] for s in pointing} == {trace_id}
    assert all(s.exemplar.value <= float(s.labels["le"]) for s in pointing)
