"""A command ends by the signals that shells and supervisors send, however it was started."""

import signal
import subprocess
import sys

import pytest

COMMAND = """
import asyncio, signal, sys
import typer
from penstock_cli.execution import run

if sys.argv[1] == "background":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells start their background jobs

async def serve():
    try:
        print("ready", flush=True)
        await asyncio.Event().wait()
    finally:
        print("cleaned up", flush=True)

try:
    run(serve())
except typer.Exit as stopped:
    sys.exit(stopped.exit_code)
"""


@pytest.mark.parametrize("started", ["foreground", "background"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cleans_up_and_gives_the_usual_status(
    started: str, number: signal.Signals, status: int
) -> None:
    command = [sys.executable, "-c", COMMAND, started]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"

        child.send_signal(number)

        assert child.communicate(timeout=20)[0] == "cleaned up\n"
        assert child.returncode == status
