"""Child processes: waited for, restarted, stopped in order, gone with their parent."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from penstock_cli.failures import CommandFailed
from penstock_cli.supervisor import child
from penstock_cli.supervisor.processes import Spec, Supervisor

# Says so in a file once it runs, then waits; a signal's name goes into the file as well.
PROGRAM = """
import os, signal, sys, time
path = sys.argv[1]
def note(text):
    with open(path, "a") as out:
        out.write(text + "\\n")
def on_term(*_):
    note(f"term {time.monotonic_ns()}")
    if "stubborn" not in sys.argv:
        sys.exit(0)
signal.signal(signal.SIGTERM, on_term)
note(f"up {os.getpid()}")
while True:
    time.sleep(60)
"""


class Program:
    """A child that writes what happens to it into a file."""

    def __init__(self, folder: Path, name: str, *flags: str, grace_s: float = 5.0) -> None:
        self.notes = folder / f"{name}.notes"
        self.notes.touch()
        argv = (sys.executable, "-c", PROGRAM, str(self.notes), *flags)
        self.spec = Spec(name, argv, self.is_up, start_timeout_s=10.0, grace_s=grace_s)

    def words(self, kind: str) -> list[int]:
        lines = self.notes.read_text(encoding="utf-8").split("\n")
        return [int(line.split()[1]) for line in lines if line.startswith(kind)]

    async def is_up(self) -> bool:
        pids = self.words("up")
        return bool(pids) and psutil.pid_exists(pids[-1])


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def said() -> list[str]:
    return []


async def test_children_are_ready_inside_and_gone_after_last_started_first(
    tmp_path: Path, said: list[str]
) -> None:
    first, second = Program(tmp_path, "first"), Program(tmp_path, "second")
    async with Supervisor(tmp_path / "logs", said.append) as supervisor:
        await supervisor.start([first.spec])
        await supervisor.start([second.spec])
        pids = supervisor.pids()
        assert pids == {"first": first.words("up")[0], "second": second.words("up")[0]}

    assert all(gone(pid) for pid in pids.values())
    assert second.words("term")[0] < first.words("term")[0]
    assert said == []


async def test_child_that_dies_is_started_again_and_it_is_said(
    tmp_path: Path, said: list[str]
) -> None:
    program = Program(tmp_path, "mortal")
    async with Supervisor(tmp_path / "logs", said.append) as supervisor:
        await supervisor.start([program.spec])
        os.kill(supervisor.pids()["mortal"], signal.SIGKILL)
        await until(lambda: "mortal is ready again" in said, "it was ready again")
        assert len(program.words("up")) == 2

    assert said[0] == "mortal was ended by SIGKILL; starting it again"
    assert all(gone(pid) for pid in program.words("up"))


async def test_child_that_ends_at_its_start_fails_with_its_last_log_lines(
    tmp_path: Path, said: list[str]
) -> None:
    async def never() -> bool:
        return False

    healthy = Program(tmp_path, "healthy")
    broken = Spec("broken", (sys.executable, "-c", "print('no model'); exit(3)"), never)
    with pytest.raises(CommandFailed, match="broken exited with status 3") as caught:
        async with Supervisor(tmp_path / "logs", said.append) as supervisor:
            await supervisor.start([healthy.spec, broken])

    assert "no model" in caught.value.detail
    assert all(gone(pid) for pid in healthy.words("up"))


async def test_child_that_never_gets_ready_fails_at_its_deadline(
    tmp_path: Path, said: list[str]
) -> None:
    async def never() -> bool:
        return False

    slow = Spec("slow", Program(tmp_path, "slow").spec.argv, never, start_timeout_s=0.2)
    with pytest.raises(CommandFailed, match=r"slow was not ready within 0\.2 s"):
        async with Supervisor(tmp_path / "logs", said.append) as supervisor:
            await supervisor.start([slow])


async def test_child_that_ignores_the_request_to_end_is_killed_after_its_grace(
    tmp_path: Path, said: list[str]
) -> None:
    program = Program(tmp_path, "deaf", "stubborn", grace_s=0.2)
    async with Supervisor(tmp_path / "logs", said.append) as supervisor:
        await supervisor.start([program.spec])

    assert len(program.words("term")) == 1
    assert gone(program.words("up")[0])


@pytest.fixture
def parent_of_a_child(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that launched a child as the supervisor does, and the child's id."""
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = f"""
import os, subprocess, sys
argv = [sys.executable, "-I", "-S", {child.__file__!r}, str(os.getpid()), sys.executable, "-c", {sleeper!r}]
subprocess.Popen(argv, start_new_session=True).wait()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        yield parent, pid
        parent.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="the signal exists on Linux only")
async def test_child_dies_with_a_parent_that_was_killed(
    parent_of_a_child: tuple[subprocess.Popen[str], int],
) -> None:
    parent, pid = parent_of_a_child
    assert not gone(pid)

    parent.kill()

    await until(lambda: gone(pid), "the child was gone")


def test_child_whose_parent_has_already_gone_starts_nothing(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    argv = [sys.executable, "-I", "-S", child.__file__, "1", "/usr/bin/env", "touch", str(witness)]
    done = subprocess.run(argv, check=False)

    assert done.returncode == 1
    assert not witness.exists()
