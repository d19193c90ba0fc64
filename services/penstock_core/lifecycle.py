"""How a process starts and ends: signals set an event, the process drains and returns."""

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable

import uvloop

from penstock_core.errors import PenstockError
from penstock_core.settings import SettingsError

logger = logging.getLogger(__name__)

_YOUNG_OBJECTS = 10_000


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run ``main(stop)`` on an event loop; SIGTERM and SIGINT set ``stop``. Returns the exit status.

    ``main`` serves until ``stop`` is set, then drains within its own grace period. A second
    signal ends the process at once.
    """

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _on_signal, stop, number)
        await main(stop)

    with contextlib.suppress(KeyboardInterrupt):
        try:
            uvloop.run(supervised())
        except (SettingsError, PenstockError, OSError) as error:
            logger.error("cannot go on: %s", error)
            return 1
    return 0


def settle() -> None:
    """A process is ready: what it was started with stays.

    Modules and their like are most of what the garbage collector would look at, tens of
    milliseconds each time in which nobody is answered. What requests make is freed by reference
    counts; the collector need not hurry to look for cycles in it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


def _on_signal(stop: asyncio.Event, number: signal.Signals) -> None:
    if stop.is_set():
        logger.warning("second %s: ending at once", number.name)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    logger.info("%s: draining", number.name)
    stop.set()


def fail(message: str) -> int:
    """Say on standard error why a process cannot start; returns exit status 2."""
    sys.stderr.write(f"{message}\n")
    return 2
