"""TLS and mutual TLS on every hop, by configuration alone; plaintext and strangers are refused."""

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock_client import AsyncBatchClient, AsyncClient
from penstock_core import probe
from penstock_core.errors import PenstockError, Unavailable
from penstock_core.rpc.channels import channel
from penstock_core.rpc.interceptors import ServerInterceptor
from penstock_core.rpc.server import RpcServer
from penstock_core.security.auth import KeyRing
from penstock_core.security.tls import PLAIN, HttpTls, Tls
from penstock_core.settings import SettingsError
from penstock_router.settings import RouterSettings
from penstock_testing.processes.ports import free_port
from penstock_testing.servers.certificates import Authority
from penstock_testing.servers.guarded import guarded_platform

DEADLINE_S = 20.0


@asynccontextmanager
async def serving(tls: Tls) -> AsyncIterator[str]:
    """A server without services of its own."""
    server = RpcServer(ServerInterceptor(KeyRing.open_to_all()), (), (), tls=tls)
    target = f"127.0.0.1:{server.bind('127.0.0.1:0')}"
    await server.start()
    await server.serve()
    try:
        yield target
    finally:
        await server.stop(0)


async def answers(target: str, tls: Tls) -> bool:
    """Whether a new connection gets an answer."""
    async with channel(target, tls) as to:
        stub = health_pb2_grpc.HealthStub(to)
        try:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        except Exception:  # noqa: BLE001 - which error a broken handshake gives is grpc's affair
            return False
    return True


async def serial(target: str, ca: Path) -> int:
    """Which certificate a server shows to a new connection."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    host, _, port = target.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
    writer.close()
    return int(shown, 16)


async def test_a_request_and_a_batch_cross_every_hop_under_mutual_tls(
    tmp_path: Path, redis_url: str
) -> None:
    ours = replace(Authority(tmp_path).issue("ours"), client_auth=True)
    async with guarded_platform(tmp_path, redis_url, tls=ours) as platform:
        async with AsyncClient(platform.router, api_key="pk-acme", tls=ours) as client:
            straight = await client.generate("hello", model="fake", max_tokens=2, temperature=0)
        async with AsyncClient(
            platform.router, api_key="pk-acme", mode="proxy", tls=ours
        ) as client:
            proxied = await client.generate("hello", model="fake", max_tokens=2, temperature=0)
        async with AsyncBatchClient(platform.batch, api_key="pk-acme", tls=ours) as batches:
            listed = list((await batches.list()).batches)
        context = ssl.create_default_context(cafile=ours.ca)
        async with httpx.AsyncClient(base_url=platform.gateway, verify=context) as http:
            answer = await http.post(
                "/v1/completions",
                headers={"authorization": "Bearer pk-acme"},
                json={"model": "fake", "prompt": "hello", "max_tokens": 2},
            )
            files = await http.get("/v1/files", headers={"authorization": "Bearer pk-acme"})
        servers = (platform.worker.endpoint, platform.router, platform.batch)
        unknown = replace(ours, cert="", key="", client_auth=False)
        plain = [await answers(target, PLAIN) for target in servers]
        nameless = [await answers(target, unknown) for target in servers]
        known = [await answers(target, ours) for target in servers]
        http_url = platform.gateway.replace("https://", "http://")
        async with httpx.AsyncClient(base_url=http_url) as http:
            with pytest.raises(httpx.TransportError):
                await http.get("/healthz")
    assert straight.text == proxied.text
    assert answer.status_code == files.status_code == 200
    assert listed == []
    assert (plain, nameless, known) == ([False] * 3, [False] * 3, [True] * 3)


async def test_a_strangers_authority_is_trusted_on_neither_side(tmp_path: Path) -> None:
    ours = replace(Authority(tmp_path).issue("ours"), client_auth=True)
    theirs = Authority(tmp_path, "other-ca").issue("theirs")
    async with serving(ours) as target:
        forged_client = await answers(target, replace(theirs, ca=ours.ca))
        forged_server = await answers(target, replace(ours, ca=theirs.ca))
        right = await answers(target, ours)
    assert (forged_client, forged_server, right) == (False, False, True)


async def test_a_certificate_for_another_name_is_refused_unless_that_name_is_meant(
    tmp_path: Path,
) -> None:
    named = Authority(tmp_path).issue("named", "router.internal")
    async with serving(named) as target:
        by_address = await answers(target, named)
        by_name = await answers(target, replace(named, server_name="router.internal"))
    assert (by_address, by_name) == (False, True)


async def test_certificates_rotate_under_a_running_grpc_server(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = authority.issue("ours")
    async with serving(tls) as target:
        first = await serial(target, authority.file)
        authority.issue("ours")
        second = await serial(target, authority.file)
        await asyncio.to_thread(Path(tls.cert).write_text, "half a fi")
        third = await serial(target, authority.file)
    assert first != second
    assert second == third, "a broken file must not break the server"


def test_certificates_rotate_under_a_running_http_server(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    http = HttpTls(authority.issue("ours"))
    unchanged = http.refresh()
    authority.issue("ours")
    changed = http.refresh()
    Path(tmp_path / "ours.key").write_text("no key")
    broken = http.refresh()
    assert (unchanged, changed, broken) == (False, True, False)


async def test_the_probe_speaks_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Authority(tmp_path).issue("ours")
    monkeypatch.setenv("PENSTOCK_TLS_CA", ours.ca)
    async with serving(ours) as target:
        ready = await asyncio.to_thread(probe.main, [target])
        monkeypatch.delenv("PENSTOCK_TLS_CA")
        without = await asyncio.to_thread(probe.main, [target])
    assert (ready, without) == (0, 1)


@pytest.mark.process
async def test_a_process_serves_its_metrics_over_tls(tmp_path: Path) -> None:
    ours, port = Authority(tmp_path).issue("ours"), free_port()
    settings = {
        "LISTEN": f"unix:{tmp_path}/router.sock",
        "WORKERS": "127.0.0.1:1",
        "METRICS_LISTEN": f"127.0.0.1:{port}",
        "TLS_CERT": ours.cert,
        "TLS_KEY": ours.key,
    }
    environment = {f"PENSTOCK_ROUTER_{name}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock_router", env={**os.environ, **environment},
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with (
            asyncio.timeout(DEADLINE_S),
            httpx.AsyncClient(verify=ssl.create_default_context(cafile=ours.ca)) as http,
        ):
            while (status := await scraped(http, f"https://127.0.0.1:{port}/metrics")) != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        async with httpx.AsyncClient() as http:
            plain = await scraped(http, f"http://127.0.0.1:{port}/metrics")
    finally:
        process.terminate()
        await process.wait()
    assert (status, plain) == (200, 0)


async def scraped(http: httpx.AsyncClient, url: str) -> int:
    """The status of a GET; 0 if nobody answers."""
    try:
        return (await http.get(url)).status_code
    except httpx.TransportError:
        return 0


async def test_a_client_without_tls_is_told_that_nobody_answers(tmp_path: Path) -> None:
    async with (
        serving(Authority(tmp_path).issue("ours")) as target,
        AsyncClient(target, timeout_s=3) as client,
    ):
        with pytest.raises(PenstockError) as caught:
            await client.models()
    assert isinstance(caught.value, Unavailable)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tls_cert": "ours.crt"},
        {"tls_cert": "ours.crt", "tls_key": "theirs.key"},
        {"tls_ca": "none.pem"},
        {"tls_cert": "ours.crt", "tls_key": "ours.key", "tls_client_auth": True},
    ],
    ids=["no key", "another's key", "no such file", "client certificates of nobody"],
)
def test_files_that_do_not_fit_end_a_process_at_its_start(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    authority = Authority(tmp_path)
    authority.issue("ours")
    authority.issue("theirs")
    paths = {k: str(tmp_path / v) if isinstance(v, str) else v for k, v in wrong.items()}
    with pytest.raises(SettingsError, match="TLS_CERT"):
        RouterSettings.model_validate(paths).tls()
