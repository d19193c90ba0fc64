"""Which requests run on this worker, so that they can be found, ended and waited for."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from penstock_core.errors import Conflict, Draining, Evicted, PenstockError


class Running(Protocol):
    """A request that runs."""

    def evict(self, error: PenstockError) -> None:
        """End it: its caller gets this error."""
        ...


@dataclass(frozen=True, slots=True)
class DrainResult:
    """How the requests ended that ran when draining began."""

    finished: int
    aborted: int


class RequestTable:
    """Requests by id."""

    def __init__(self) -> None:
        self._running: dict[str, Running] = {}
        self._changed = asyncio.Event()
        self._draining = False

    @property
    def ids(self) -> list[str]:
        """Ids of what runs, sorted."""
        return sorted(self._running)

    def check_open(self) -> None:
        """Raise Draining once nothing new is taken."""
        if self._draining:
            raise Draining("this worker finishes what it has and takes nothing new")

    @contextmanager
    def running(self, request_id: str, request: Running) -> Iterator[None]:
        """Hold a request while it runs.

        Raises:
            Draining: nothing new is taken.
            Conflict: a request of this id runs already.
        """
        self.check_open()
        if request_id in self._running:
            raise Conflict(f"request {request_id} runs already on this worker")
        self._running[request_id] = request
        try:
            yield
        finally:
            del self._running[request_id]
            self._changed.set()

    def evict(self, request_id: str, error: PenstockError) -> bool:
        """End a request. False if it is unknown."""
        request = self._running.get(request_id)
        if request is not None:
            request.evict(error)
        return request is not None

    async def drain(self, grace_s: float) -> DrainResult:
        """Take nothing new; wait for what runs, then end what is left."""
        self._draining = True
        before = len(self._running)
        try:
            async with asyncio.timeout(grace_s):
                await self._empty()
        except TimeoutError:
            pass
        left = len(self._running)
        for request_id in self.ids:
            self.evict(request_id, Evicted("the worker is going away; continue on another"))
        await self._empty()
        return DrainResult(max(before - left, 0), left)

    async def _empty(self) -> None:
        while self._running:
            self._changed.clear()
            await self._changed.wait()
