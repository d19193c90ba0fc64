"""``python -m penstock_worker`` in a process of its own, and what it logs."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

_NO_ARGUMENTS: Sequence[str] = ()


@dataclass(slots=True)
class WorkerProcess:
    """A worker process and what it has logged."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    logged: threading.Condition = field(default_factory=threading.Condition)

    @property
    def endpoint(self) -> str:
        """Where it serves, once it does."""
        return self.find(r"serves on (\S+?)\"")

    def find(self, pattern: str, timeout_s: float = 60) -> str:
        """The first group of a pattern in the log, waited for. Raises AssertionError at the deadline."""

        def match() -> re.Match[str] | None:
            return re.search(pattern, "".join(self.lines))

        with self.logged:
            assert self.logged.wait_for(match, timeout_s), f"no {pattern} in {self.lines}"
        found = match()
        assert found is not None
        return found[1]

    def follow(self) -> None:
        """Read its log to the end."""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            with self.logged:
                self.lines.append(line)
                self.logged.notify_all()


@contextmanager
def worker_process(
    settings: Mapping[str, str],
    arguments: Sequence[str] = _NO_ARGUMENTS,
    environment: Mapping[str, str] | None = None,
) -> Iterator[WorkerProcess]:
    """Start it, on a free port unless told otherwise; killed at the end if it still runs.

    ``settings`` are variables without their prefix.
    """
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "OTEL_"))}
    given = {"LISTEN": "127.0.0.1:0", **settings}
    popen = subprocess.Popen(
        [sys.executable, "-m", "penstock_worker", *arguments],
        env=ours | dict(environment or {}) | {f"PENSTOCK_WORKER_{k}": v for k, v in given.items()},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process = WorkerProcess(popen)
    reader = threading.Thread(target=process.follow)
    reader.start()
    try:
        yield process
    finally:
        popen.kill()
        popen.wait()
        reader.join()
        assert popen.stderr is not None
        popen.stderr.close()
