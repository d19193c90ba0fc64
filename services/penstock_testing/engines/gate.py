"""Lets a fake go step by step: open, held, or held with a number of steps allowed."""

import asyncio
from collections.abc import Callable


class StepGate:
    """Everybody's next step passes here. Starts open."""

    def __init__(self) -> None:
        self._open = True
        self._permits = 0
        self._changed = asyncio.Event()

    def hold(self) -> None:
        """Let no step pass from now on."""
        self._open = False

    def release(self) -> None:
        """Let every step pass."""
        self._open = True
        self.poke()

    def allow(self, steps: int) -> None:
        """While held, let this many more steps pass."""
        self._permits += steps
        self.poke()

    def poke(self) -> None:
        """Make everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def step(self, give_up: Callable[[], bool]) -> None:
        """Wait for permission; returns at once when ``give_up()`` is or becomes true (and a poke)."""
        while not give_up():
            if self._open:
                await asyncio.sleep(0)
                return
            if self._permits:
                self._permits -= 1
                return
            await self._changed.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; looked at after each poke."""
        while not condition():
            await self._changed.wait()
