"""How a process ends and what it shows of itself, seen from outside."""

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

SERVE = """
import asyncio, sys
from opentelemetry import metrics
from penstock_core import lifecycle
from penstock_core.telemetry import logs
from penstock_core.telemetry import semconv
from penstock_core.telemetry import setup as telemetry

async def main(stop):
    histogram = metrics.get_meter("t").create_histogram(semconv.TTFT, unit="s")
    histogram.record(0.03, {"gen_ai.request.model": "m"})
    print(running.metrics_port, flush=True)
    await stop.wait()
    if sys.argv[1:] == ["stuck"]:
        await asyncio.Event().wait()

logs.configure("test")
with telemetry.start("test", metrics_listen="127.0.0.1:0") as running:
    status = lifecycle.run(main)
sys.exit(status)
"""

FAIL = """
import sys
from penstock_core import lifecycle
from penstock_core.telemetry import logs
logs.configure("test")

async def main(stop):
    raise OSError("cannot listen on 127.0.0.1:1")

sys.exit(lifecycle.run(main))
"""


@contextmanager
def process(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_process_end_by_itself(number: signal.Signals) -> None:
    with process(SERVE) as child:
        assert child.stdout is not None
        child.stdout.readline()

        child.send_signal(number)

        assert child.wait(20) == 0


def test_a_second_signal_ends_a_stuck_process_at_once() -> None:
    with process(SERVE, "stuck") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()

        child.send_signal(signal.SIGTERM)
        assert "draining" in child.stderr.readline()
        child.send_signal(signal.SIGTERM)

        assert child.wait(20) == -signal.SIGTERM


def test_metrics_can_be_scraped_with_the_conventions_buckets() -> None:
    with process(SERVE) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())

        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()

    buckets = dict(re.findall(r'time_to_first_token_seconds_bucket{.*le="(.*?)".*} (.*)', text))
    assert (buckets["0.02"], buckets["0.04"]) == ("0.0", "1.0")


def test_a_process_that_cannot_start_says_why_and_exits_with_one() -> None:
    with process(FAIL) as child:
        _, errors = child.communicate(timeout=20)

    assert child.returncode == 1
    assert "cannot listen on 127.0.0.1:1" in errors
    assert "Traceback" not in errors
