"""A router that starts: it answers once it knows who can, and waits for nobody for long."""

import socket

import pytest

from penstock.inference.v1 import inference_service_pb2_grpc
from penstock_core.rpc import server as rpc
from penstock_router import process
from penstock_router.process import running_router
from penstock_testing.servers.cluster import DEADLINE_S, DEFAULT_SETTINGS, ask, collect
from penstock_testing.servers.worker import running_worker


async def test_its_first_request_finds_the_workers_that_are_there() -> None:
    async with running_worker() as worker:
        settings = DEFAULT_SETTINGS.model_copy(update={"workers": worker.endpoint})
        async with running_router(settings) as router, rpc.channel(router.endpoint) as channel:
            assert router.fleet.states() == {"LIVE": 1}
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            answer = await collect(stub.Generate(ask("hello"), timeout=DEADLINE_S))
    assert len(answer.tokens) == 4


async def test_it_does_not_wait_for_workers_that_are_not_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{nobody.getsockname()[1]}"
        settings = DEFAULT_SETTINGS.model_copy(update={"workers": endpoint})
        async with running_router(settings) as router:
            assert router.fleet.states() == {"DEAD": 1}
    assert "serving with the others" not in caplog.text


async def test_it_serves_without_a_worker_that_never_says_anything(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "_LOOK_ROUND_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        settings = DEFAULT_SETTINGS.model_copy(update={"workers": endpoint})
        async with running_router(settings) as router:
            assert router.fleet.states() == {"COLD": 1}
    assert "serving with the others" in caplog.text
