"""Which adapters are in memory: loaded on first use, a bounded number, the idle ones dropped first.

Owns who uses an adapter and who waits for room. Loading happens in a thread; everything else on the
event loop. An adapter stays for as long as a request uses it. Who needs room waits until some adapter
has no user; others may overtake, but nobody overtakes one who has waited for long.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from penstock_core.errors import Conflict, EngineFailed, Overloaded
from penstock_engine.native.lora.reading import LoraWeights

logger = logging.getLogger(__name__)

_PATIENCE_S = 1.0
_MIB = 1 << 20
_SMOOTHING = 0.3


class Shelf(Protocol):
    """Where the decoder finds loaded adapters."""

    def put(self, name: str, weights: LoraWeights) -> int:
        """Keep an adapter; returns the memory it takes."""
        ...

    def drop(self, name: str) -> None:
        """Forget an adapter that no running request uses."""
        ...


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """``resident`` adapters may be in memory, and ``waiting`` requests may wait for room."""

    resident: int
    waiting: int


@dataclass(slots=True)
class _Resident:
    """An adapter that is in memory or on its way there; idle since ``idle_since`` (a count)."""

    loading: asyncio.Task[None]
    users: int = 1
    idle_since: int = 0


@dataclass(frozen=True, slots=True)
class _Ticket:
    """A request's place in the queue."""

    name: str
    granted: asyncio.Future[None]
    since: float


class AdapterPool:
    """The adapters of one engine; ``read`` gets a name and runs in a thread."""

    def __init__(
        self,
        read: Callable[[str], LoraWeights],
        shelf: Shelf,
        limits: PoolLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._shelf = shelf
        self._limits = limits
        self._clock = clock
        self._residents: dict[str, _Resident] = {}
        self._digests: dict[str, str] = {}
        self._queue: deque[_Ticket] = deque()
        self._releases = 0
        self._load_s = 0.0

    @property
    def residents(self) -> tuple[str, ...]:
        """Names of what is in memory or on its way there, sorted."""
        return tuple(sorted(self._residents))

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of what is in memory, sorted."""
        return tuple(sorted(n for n, r in self._residents.items() if _succeeded(r.loading)))

    @property
    def load_s(self) -> float:
        """Smoothed seconds that bringing one into memory takes; 0 before the first."""
        return self._load_s

    async def acquire(self, name: str) -> None:
        """Have an adapter in memory until ``release``.

        Raises:
            NotFound, InvalidRequest, NotSupported: it cannot be loaded; see ``read_adapter``.
            Conflict: its files changed since it was first loaded.
            Overloaded: too many wait for room already.
        """
        if self._must_queue() or not self._take(name):
            await self._wait_for_room(name)
        loading = self._residents[name].loading
        try:
            await asyncio.wait([loading])  # others may wait for it too: ours is not to cancel it
            loading.result()
        except BaseException:
            self.release(name)
            raise

    def release(self, name: str) -> None:
        """One user less."""
        resident = self._residents[name]
        resident.users -= 1
        if not resident.users:
            self._releases += 1
            resident.idle_since = self._releases
            self._settle(name)

    async def close(self) -> None:
        """Wait for what is being loaded, and let nobody wait any more."""
        for ticket in self._queue:
            if not ticket.granted.done():
                ticket.granted.set_exception(EngineFailed("the engine was closed"))
        self._queue.clear()
        tasks = [resident.loading for resident in self._residents.values()]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _must_queue(self) -> bool:
        return bool(self._queue) and self._clock() - self._queue[0].since > _PATIENCE_S

    def _take(self, name: str) -> bool:
        """Become a user, if the adapter is there or can be made room for."""
        resident = self._residents.get(name)
        if resident is not None:
            resident.users += 1
            return True
        if len(self._residents) >= self._limits.resident and not self._evict():
            return False
        loading = asyncio.create_task(asyncio.to_thread(self._fetch, name))
        loading.add_done_callback(lambda _: self._settle(name))
        self._residents[name] = _Resident(loading)
        return True

    def _evict(self) -> bool:
        # A load that nobody waits for any more goes on, and keeps its place until it is done.
        idle = {
            resident.idle_since: name
            for name, resident in self._residents.items()
            if not resident.users and resident.loading.done()
        }
        if not idle:
            return False
        name = idle[min(idle)]
        del self._residents[name]
        self._shelf.drop(name)
        logger.info("adapter %s dropped from memory", name)
        return True

    async def _wait_for_room(self, name: str) -> None:
        if len(self._queue) >= self._limits.waiting:
            message = f"all {self._limits.resident} adapters in memory are used, and many wait"
            raise Overloaded(message)
        ticket = _Ticket(name, asyncio.get_running_loop().create_future(), self._clock())
        self._queue.append(ticket)
        try:
            await ticket.granted
        except asyncio.CancelledError:
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._grant()
            else:
                self.release(name)
            raise

    def _grant(self) -> None:
        """Let in who can be, in order; the first may be overtaken only for a while."""
        for ticket in list(self._queue):
            if ticket.granted.done():
                continue  # it was cancelled and has not left yet
            if self._take(ticket.name):
                self._queue.remove(ticket)
                ticket.granted.set_result(None)
            elif self._must_queue():
                return

    def _settle(self, name: str) -> None:
        """A user or a load less: forget what failed, so that the next one tries again."""
        resident = self._residents.get(name)
        if resident is not None and not resident.users and _failed(resident.loading):
            del self._residents[name]
        self._grant()

    def _fetch(self, name: str) -> None:
        began = self._clock()
        weights = self._read(name)
        if self._digests.setdefault(name, weights.digest) != weights.digest:
            # KV blocks that were computed with the old one may be cached under this name.
            raise Conflict(
                f"adapter {name!r} changed on disk; restart the worker to use the new one"
            )
        num_bytes = self._shelf.put(name, weights)
        seconds = self._clock() - began
        # The first one tells of a cold disk too; what comes after outweighs it soon.
        self._load_s += (seconds - self._load_s) * (_SMOOTHING if self._load_s else 1.0)
        logger.info(
            "adapter %s loaded in %.2f s: rank %d, %.1f MiB",
            name,
            seconds,
            weights.max_rank,
            num_bytes / _MIB,
        )


def _succeeded(loading: asyncio.Task[None]) -> bool:
    return loading.done() and not _failed(loading)


def _failed(loading: asyncio.Task[None]) -> bool:
    return loading.done() and (loading.cancelled() or loading.exception() is not None)
