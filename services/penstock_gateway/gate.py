"""Counts the requests in flight: refuses beyond a limit and while draining, waits for the rest."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from penstock_core.errors import Draining, Overloaded


class Gate:
    """One gateway's entrance."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False
        self.is_leaving = False

    @contextmanager
    def pass_through(self) -> Iterator[None]:
        """Be counted while the context lasts.

        Raises:
            Draining: the gateway is about to end.
            Overloaded: as many requests as allowed are in flight.
        """
        if self._is_closed:
            raise Draining("the gateway is shutting down")
        if self._inside >= self._limit:
            raise Overloaded(f"{self._limit} requests are in flight, the gateway's limit")
        self._inside += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._idle.set()

    async def drain(self, timeout_s: float, linger_s: float = 0.0) -> bool:
        """Let nobody in any more and wait for those inside; whether all left in time.

        For ``linger_s`` it only says that it is leaving: who asks for readiness learns it before
        anybody is refused.
        """
        self.is_leaving = True
        if linger_s:
            await asyncio.sleep(linger_s)
        self._is_closed = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
