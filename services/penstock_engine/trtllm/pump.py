"""Reads one of the engine's draining streams for ever: its only reader, on the loop of the requests.

Owns when to ask again. The streams end when the engine idles, and asked again at once they end at
once: an idle engine is asked seldom, a busy one without a pause, and a new request ends every pause.
"""

import asyncio
import logging
from collections.abc import Callable

from penstock_engine.trtllm.package import Iterations

logger = logging.getLogger(__name__)

IDLE_TIMEOUT_S = 0.25
MIN_PAUSE_S = 0.005
MAX_PAUSE_S = 0.5


class Pump:
    """``read`` opens the stream, ``take`` gets each item, ``lost`` hears that the stream broke."""

    def __init__(
        self,
        read: Callable[[float], Iterations],
        take: Callable[[object], None],
        lost: Callable[[Exception], None],
    ) -> None:
        self._read = read
        self._take = take
        self._lost = lost
        self._poked = asyncio.Event()

    def poke(self) -> None:
        """There will be something to read."""
        self._poked.set()

    async def run(self) -> None:
        """Read until cancelled."""
        pause = MIN_PAUSE_S
        while True:
            try:
                found = await self._drain()
            except Exception as error:  # noqa: BLE001 - whatever it was, the stream may go on
                self._lost(error)
                found = False
            pause = MIN_PAUSE_S if found else min(2 * pause, MAX_PAUSE_S)
            if await self._wait(pause):
                pause = MIN_PAUSE_S

    async def _drain(self) -> bool:
        found = False
        async for item in self._read(IDLE_TIMEOUT_S):
            found = True
            self._take(item)
        return found

    async def _wait(self, pause: float) -> bool:
        """Pause; true if it was cut short."""
        try:
            async with asyncio.timeout(pause):
                await self._poked.wait()
        except TimeoutError:
            return False
        self._poked.clear()
        return True
