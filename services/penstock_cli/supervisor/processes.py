"""Child processes: started, waited for until ready, restarted when they die, stopped in order.

Knows nothing of Penstock: what runs and how to ask whether it is ready stands in a ``Spec``.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penstock_cli.failures import CommandFailed
from penstock_cli.supervisor import child
from penstock_cli.supervisor.probes import Probe

_POLL_S = 0.1
_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 10.0
_STEADY_AFTER_S = 30.0
_TAIL_LINES = 15

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Spec:
    """One process.

    Attributes:
        name: for people and for its log file.
        argv: absolute path of the program, then its arguments.
        is_ready: asked again and again until it says so.
        env: added to the supervisor's own environment.
        start_timeout_s: seconds it may take to get ready.
        grace_s: seconds between the request to end and the end by force.
    """

    name: str
    argv: tuple[str, ...]
    is_ready: Probe
    env: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 90.0
    grace_s: float = 15.0


class Child:
    """One supervised process through all its lives."""

    def __init__(self, spec: Spec, log_path: Path) -> None:
        self.spec = spec
        self.log_path = log_path
        self._process: asyncio.subprocess.Process | None = None
        self._started_s = 0.0

    @property
    def pid(self) -> int:
        """Process id of the present life; 0 before the first."""
        return self._process.pid if self._process else 0

    @property
    def life_s(self) -> float:
        """Seconds since the present life began."""
        return time.monotonic() - self._started_s

    async def launch(self) -> None:
        """Start it, in a session of its own so that a terminal's Ctrl-C reaches only us."""
        self._started_s = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", child.__file__, str(os.getpid()), *self.spec.argv),
                env={**os.environ, **self.spec.env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def until_ready(self) -> None:
        """Wait until it is ready. Raises CommandFailed with its last log lines."""
        name = self.spec.name
        try:
            async with asyncio.timeout(self.spec.start_timeout_s):
                while self._running():
                    if await self.spec.is_ready():
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise CommandFailed(
                f"{name} was not ready within {self.spec.start_timeout_s:g} s", self.log_tail()
            ) from None
        raise CommandFailed(f"{name} {self.how_it_ended()} at its start", self.log_tail())

    async def until_dead(self) -> None:
        """Wait for the end of the present life."""
        if self._process is not None:
            await self._process.wait()

    def how_it_ended(self) -> str:
        """In words."""
        code = self._process.returncode if self._process else None
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"exited with status {code}"

    def log_tail(self) -> str:
        """The last lines it wrote, and where the rest is."""
        with self.log_path.open(encoding="utf-8", errors="replace") as log:
            lines = deque(log, maxlen=_TAIL_LINES)
        return f"{''.join(lines)}(the whole log: {self.log_path})"

    async def stop(self) -> None:
        """Ask it to end; end it by force after its grace period, with whatever it started."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.spec.grace_s):
                if self._running():
                    process.terminate()
                await process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    def _running(self) -> bool:
        return self._process is not None and self._process.returncode is None


class Supervisor:
    """Keeps children running until it is closed; logs go to ``log_dir/NAME.log``."""

    def __init__(self, log_dir: Path, say: Say) -> None:
        self._log_dir = log_dir
        self._say = say
        self._children: list[Child] = []
        self._watchers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Supervisor":
        """Make the folder of the logs."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop every child, the last one started first."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for started in reversed(self._children):
            await started.stop()

    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {started.spec.name: started.pid for started in self._children}

    async def start(self, specs: Sequence[Spec]) -> None:
        """Start processes side by side and wait until each is ready, then watch over them.

        Raises:
            CommandFailed: one ended or did not get ready in time; its last log lines are in it.
        """
        fresh = [Child(spec, self._log_path(spec.name)) for spec in specs]
        for started in fresh:
            self._children.append(started)
            await started.launch()
        await _all_ready(fresh)
        self._watchers += [asyncio.create_task(self._keep(started)) for started in fresh]

    def _log_path(self, name: str) -> Path:
        path = self._log_dir / f"{name}.log"
        path.write_bytes(b"")
        return path

    async def _keep(self, watched: Child) -> None:
        """Start it again whenever it dies, later and later while it dies young."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            await watched.until_dead()
            if watched.life_s > _STEADY_AFTER_S:
                backoff_s = _FIRST_BACKOFF_S
            self._say(f"{watched.spec.name} {watched.how_it_ended()}; starting it again")
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
            await watched.launch()
            try:
                await watched.until_ready()
            except CommandFailed as failure:
                self._say(f"{failure} (log: {watched.log_path})")
                await watched.stop()
            else:
                self._say(f"{watched.spec.name} is ready again")


async def _all_ready(children: Sequence[Child]) -> None:
    waits = [asyncio.create_task(started.until_ready()) for started in children]
    try:
        for finished in asyncio.as_completed(waits):
            await finished
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
