"""The router as a process: what it imports, refuses to start with, and how it ends."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.routing.v1 import routing_service_pb2, routing_service_pb2_grpc
from penstock_core.rpc import server as rpc

pytestmark = pytest.mark.process


def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "penstock_router", *arguments],
        env=environment(settings), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def environment(settings: dict[str, str]) -> dict[str, str]:
    return os.environ | {f"PENSTOCK_ROUTER_{name}": text for name, text in settings.items()}


@contextmanager
def running(**settings: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A router process and where it listens."""
    child = subprocess.Popen(
        [sys.executable, "-m", "penstock_router"],
        env=environment(settings), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if found := re.search(r"listens on (\S+?)\"", line):
                yield child, found[1]
                break
        else:
            pytest.fail("it ended before it listened")
    finally:
        child.kill()
        child.communicate(timeout=20)


def test_it_serves_and_ends_by_itself_on_sigterm() -> None:
    with running(LISTEN="127.0.0.1:0", WORKERS="127.0.0.1:9") as (child, endpoint):
        with rpc.sync_channel(endpoint) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        child.send_signal(signal.SIGTERM)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert child.wait(20) == 0


def test_watchers_do_not_hold_up_its_end() -> None:
    settings = {"LISTEN": "127.0.0.1:0", "WORKERS": "127.0.0.1:9", "GRACE_S": "600"}
    with running(**settings) as (child, endpoint), rpc.sync_channel(endpoint) as channel:
        stub = routing_service_pb2_grpc.RoutingServiceStub(channel)
        fleet = stub.WatchFleet(routing_service_pb2.WatchFleetRequest())
        decisions = stub.WatchDecisions(routing_service_pb2.WatchDecisionsRequest())
        next(iter(fleet))
        child.send_signal(signal.SIGTERM)
        assert list(decisions) == []
        assert child.wait(20) == 0


def test_it_says_which_settings_there_are() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "PENSTOCK_ROUTER_LEASE_SECRET" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "settings", "status", "message"),
    [
        (["--listen"], {}, 2, "unknown argument"),
        ([], {"LISTENN": "x"}, 2, "PENSTOCK_ROUTER_LISTENN"),
        ([], {"LISTEN": "127.0.0.1:0"}, 1, "PENSTOCK_ROUTER_WORKERS"),
        ([], {"LISTEN": "256.0.0.1:1", "WORKERS": "a:1"}, 1, "cannot listen"),
        ([], {"REGISTRY_URL": "http://a"}, 1, "redis://"),
        ([], {"WORKERS": "a:1", "KEYS_FILE": "/no/such/file"}, 1, "/no/such/file"),
    ],
)
def test_it_refuses_to_start_on_nonsense(
    arguments: list[str], settings: dict[str, str], status: int, message: str
) -> None:
    done = run(*arguments, **settings)
    assert done.returncode == status
    assert message in done.stderr


def test_it_imports_neither_torch_nor_an_engine() -> None:
    program = (
        "import sys, penstock_router.__main__ as m;"
        "print([n for n in ('torch', 'penstock_engine', 'penstock_worker', 'celery')"
        " if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
