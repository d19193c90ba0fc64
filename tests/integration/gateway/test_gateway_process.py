"""The gateway as a process: settings, help, and an end by signal."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

pytestmark = pytest.mark.process

COMMAND = [sys.executable, "-m", "penstock_gateway"]
ENVIRONMENT = {
    "PENSTOCK_GATEWAY_LISTEN": "127.0.0.1:0",
    "PENSTOCK_GATEWAY_ROUTER": "127.0.0.1:1",
    "PENSTOCK_GATEWAY_GRACE_S": "2",
}


@contextmanager
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    child = subprocess.Popen(
        COMMAND, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stderr is not None
        line = json.loads(child.stderr.readline())
        yield child, line["message"].removeprefix("listening on ")
    finally:
        child.kill()
        child.communicate(timeout=10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    with process() as (child, address):
        alive = httpx.get(f"http://{address}/healthz")
        metrics = httpx.get(f"http://{address}/metrics")
        missing = httpx.get(f"http://{address}/v1/nothing")
        counted = httpx.get(f"http://{address}/metrics")

        child.send_signal(number)
        status = child.wait(timeout=15)

    assert alive.status_code == 200
    assert metrics.status_code == 200
    assert missing.status_code == 404
    assert "http_server_request_duration_seconds_count" in counted.text
    assert 'http_response_status_code="404"' in counted.text
    assert status == 0


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_help_names_every_setting() -> None:
    result = run("--help")

    assert result.returncode == 0
    for name in ("LISTEN", "ROUTER", "BATCH", "MAX_BODY_BYTES", "REQUEST_TIMEOUT_S", "GRACE_S"):
        assert f"PENSTOCK_GATEWAY_{name}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "says"),
    [
        (("serve",), {}, 2, "unexpected arguments"),
        ((), {"PENSTOCK_GATEWAY_LISTN": "x"}, 2, "PENSTOCK_GATEWAY_LISTN"),
        ((), {"PENSTOCK_GATEWAY_MAX_BODY_BYTES": "-1"}, 2, "MAX_BODY_BYTES"),
        ((), {"PENSTOCK_GATEWAY_LISTEN": "nowhere"}, 1, "no host:port"),
    ],
)
def test_a_wrong_start_says_what_is_wrong(
    arguments: tuple[str, ...], environment: dict[str, str], status: int, says: str
) -> None:
    result = run(*arguments, **environment)

    assert result.returncode == status
    assert says in result.stderr
