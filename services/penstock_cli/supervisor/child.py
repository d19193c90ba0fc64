"""Becomes another program that the kernel ends as soon as its parent is gone.

Run as a script: ``child.py PARENT_PID PROGRAM ARGUMENT...``. A launcher rather than a function
between fork and exec, where Python code could deadlock on the parent's threads. Only Linux has the
signal; elsewhere the program simply runs.

Source: prctl(2), PR_SET_PDEATHSIG; it survives execve(2).
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Never returns unless the parent has already gone."""
    parent, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            return 1
    os.execv(program[0], program)  # noqa: S606 - the point is to need no shell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
