"""The containers' health check tells ready from not ready."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from penstock_core import probe
from penstock_core.rpc.interceptors import ServerInterceptor
from penstock_core.rpc.server import RpcServer
from penstock_core.security.auth import KeyRing
from penstock_testing.processes.ports import free_port


class Answers(BaseHTTPRequestHandler):
    """200 on /ready, 503 elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def http() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_http_process_is_ready_when_it_answers_200(http: str) -> None:
    assert probe.main([f"{http}/ready"]) == 0
    assert probe.main([f"{http}/other"]) == 1


async def test_a_grpc_process_is_ready_while_its_health_says_serving() -> None:
    server = RpcServer(ServerInterceptor(KeyRing.open_to_all()), (), ())
    target = f"127.0.0.1:{server.bind('127.0.0.1:0')}"
    await server.start()

    before = await asyncio.to_thread(probe.main, [target])
    await server.serve()
    ready = await asyncio.to_thread(probe.main, [target])
    await server.not_serving()
    after = await asyncio.to_thread(probe.main, [target])
    await server.stop(0)

    assert (before, ready, after) == (1, 0, 1)


def test_nobody_there_is_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    target = f"127.0.0.1:{free_port()}"

    assert probe.main([target]) == 1
    assert probe.main([f"http://{target}/"]) == 1
    assert f"{target} is not ready" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["a:1", "b:2"]])
def test_a_wrong_call_is_told_how(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(arguments) == 2
    assert "usage:" in capsys.readouterr().err
