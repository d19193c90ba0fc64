"""How every command runs: one event loop, one-line errors, the exit statuses that shells expect."""

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from rich.console import Console

from penstock_cli.failures import CommandFailed
from penstock_core.errors import PenstockError, Unauthenticated, Unavailable

T = TypeVar("T")

INTERRUPTED = 128 + signal.SIGINT

# Answers go to standard output, everything said about them to standard error.
output = Console(highlight=False, emoji=False)
notes = Console(stderr=True, highlight=False, emoji=False)


@contextmanager
def failures_told() -> Iterator[None]:
    """Turn what is expected to go wrong into a sentence and an exit status.

    Raises:
        typer.Exit: with status 1 after a failure, 130 after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except (CommandFailed, PenstockError, OSError) as error:
        if isinstance(error, CommandFailed) and error.detail:
            notes.print(error.detail, style="dim", markup=False)
        notes.print(f"penstock: {_sentence(error)}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


def run(work: Coroutine[Any, Any, T], *, status_when_stopped: int | None = None) -> T:
    """Run a command's coroutine to its end; Ctrl-C and SIGTERM cancel it, and it cleans up first.

    Args:
        work: the command.
        status_when_stopped: exit status then; None gives the usual 130 and 143.

    Raises:
        typer.Exit: as ``failures_told``.
    """
    stops: list[signal.Signals] = []
    with failures_told():
        try:
            return asyncio.run(_stoppable(work, stops))
        except asyncio.CancelledError:
            usual = 128 + stops[0] if stops else INTERRUPTED
            status = usual if status_when_stopped is None else status_when_stopped
            raise typer.Exit(status) from None


async def _stoppable(work: Coroutine[Any, Any, T], stops: list[signal.Signals]) -> T:
    task = asyncio.current_task()
    assert task is not None

    def stop(number: signal.Signals) -> None:
        stops.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # SIGINT too: a shell starts background jobs with it ignored, and asyncio leaves it so.
        loop.add_signal_handler(number, stop, number)
    return await work


def _sentence(error: Exception) -> str:
    if type(error) is Unavailable:
        return f"{error}\nIs `penstock up` running? --target and --batch-target say where."
    if isinstance(error, Unauthenticated):
        return f"{error} (--api-key or PENSTOCK_API_KEY)"
    return str(error) or type(error).__name__
