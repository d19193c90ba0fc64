"""Several router processes on one port."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock_core.rpc import server as rpc
from penstock_testing.processes.platform import wait_for

pytestmark = pytest.mark.process


@contextmanager
def group(processes: int) -> Iterator[tuple["subprocess.Popen[str]", str, list[str]]]:
    """The parent, its address, and what all of them say."""
    settings = {"LISTEN": "127.0.0.1:0", "WORKERS": "127.0.0.1:9", "PROCESSES": str(processes)}
    environment = os.environ | {f"PENSTOCK_ROUTER_{name}": text for name, text in settings.items()}
    parent = subprocess.Popen(
        [sys.executable, "-m", "penstock_router"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = parent.stderr
    assert said is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(said.readline, "")))
    reader.start()
    try:
        wait_for(lambda: len(listening(lines)) >= processes, f"{processes} routers")
        yield parent, listening(lines)[0], lines
    finally:
        parent.terminate()
        parent.wait(30)
        reader.join(10)
        said.close()


def listening(lines: list[str]) -> list[str]:
    """Addresses that somebody said to listen on."""
    return re.findall(r"listens on (\S+?)\"", "".join(list(lines)))


def children(parent: "subprocess.Popen[str]") -> set[int]:
    """The processes that serve."""
    return {child.pid for child in psutil.Process(parent.pid).children()}


def test_all_listen_on_one_port_and_end_together() -> None:
    with group(2) as (parent, endpoint, lines):
        assert set(listening(lines)) == {endpoint}
        for _ in range(4):
            with rpc.sync_channel(endpoint) as channel:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=20
                )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        served = children(parent)
        assert len(served) == 2
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(30) == 0
    assert not any(psutil.pid_exists(pid) for pid in served)


def test_one_that_dies_is_started_anew() -> None:
    with group(2) as (parent, _, lines):
        before = children(parent)
        os.kill(min(before), signal.SIGKILL)
        wait_for(lambda: len(listening(lines)) == 3, "the third to listen")
        assert len(children(parent) - before) == 1


def test_a_socket_file_cannot_be_shared() -> None:
    settings = {"PENSTOCK_ROUTER_LISTEN": "unix:/tmp/r.sock", "PENSTOCK_ROUTER_PROCESSES": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "penstock_router"],
        env=os.environ | settings, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "cannot be shared" in done.stderr
