"""The whole platform as its users start it: ``penstock up`` in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 60.0
_POLL_S = 0.05
_NO_ENVIRONMENT: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class UpProcess:
    """A running ``penstock up``. Addresses are ``host:port``."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    gateway: str
    router: str
    batch: str
    api_key: str

    def children(self, module: str = "") -> list[psutil.Process]:
        """The supervised processes; only those that run one module if it is named."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if not module or module in _cmdline(child)]

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and wait; the exit status. Raises TimeoutExpired."""
        self.process.send_signal(number)
        return self.process.wait(_STOP_TIMEOUT_S)


@contextmanager
def up(
    data_dir: Path, *options: str, environment: Mapping[str, str] = _NO_ENVIRONMENT
) -> Iterator[UpProcess]:
    """``penstock up`` on free ports, ready; ended by force afterwards if it still runs.

    Raises:
        AssertionError: it ended or did not get ready; what it said is in the message.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    said = data_dir / "up.log"
    free_ports = ("--port", "0", "--router-port", "0", "--batch-port", "0")
    argv = (sys.executable, "-m", "penstock_cli", "up", "--data-dir", str(data_dir), *free_ports)
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "OTEL_"))}
    with (
        said.open("wb") as log,
        subprocess.Popen(
            [*argv, *options], env={**ours, **environment}, stdout=log, stderr=log
        ) as p,
    ):
        try:
            yield _ready(p, data_dir, said)
        finally:
            if p.poll() is None:
                p.terminate()
                try:
                    p.wait(_STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    p.kill()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Ask until it is true. Raises AssertionError at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(_POLL_S)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or dead and not yet collected."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _ready(process: subprocess.Popen[bytes], data_dir: Path, said: Path) -> UpProcess:
    announced = data_dir / "platform.json"

    def settled() -> bool:
        return announced.exists() or process.poll() is not None

    wait_for(settled, "the platform to be ready", _START_TIMEOUT_S)
    assert process.poll() is None, said.read_text(encoding="utf-8", errors="replace")
    addresses = json.loads(announced.read_text(encoding="utf-8"))
    key = data_dir / "api_key"
    return UpProcess(
        process,
        data_dir,
        addresses["gateway"],
        addresses["router"],
        addresses["batch"],
        key.read_text(encoding="utf-8").strip() if key.exists() else "",
    )


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
