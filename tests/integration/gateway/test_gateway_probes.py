"""Probes and metrics tell what is so, with and without API keys."""

import httpx
import pytest

from penstock_core.auth import KeyRing, Principal, digest
from penstock_testing.gateway import running_gateway
from penstock_testing.memory_batches import Stored, running_batches
from penstock_testing.ports import free_port
from penstock_testing.scripted_router import MODEL, Script, running_router


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


async def test_metrics_are_prometheus_text() -> None:
    async with (
        running_router(Script()) as router,
        running_gateway(router) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        response = await http.get("/metrics")

    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "python_info" in response.text
