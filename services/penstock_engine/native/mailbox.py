"""From the step thread to the event loop, and on to whoever waits there, as cheaply as can be.

Owns the wake-ups: ``Mailbox`` between the threads, ``Outlet`` on the loop. ``call_soon_threadsafe`` writes to a socket, which gives up the interpreter's lock:
the loop takes it at once and the step thread, which has a step to start, waits until all consumers have
been served. Here the lock is kept during the write, so the loop runs when the kernel does.
"""

import asyncio
import contextlib
import ctypes
import socket
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """What one thread puts in is heard on the event loop, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hear: Callable[[Item], None]) -> None:
        self._loop = loop
        self._hear = hear
        self._items: deque[Item] = deque()
        self._rung = False
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        # Unlike every other way to call a function of C, this one keeps the interpreter's lock.
        self._write = ctypes.PyDLL(None).write
        self._write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
        self._write.restype = ctypes.c_ssize_t
        loop.add_reader(self._ear, self._empty)

    def put(self, item: Item) -> bool:
        """From the other thread. False if the loop is gone and nobody will hear."""
        if self._loop.is_closed():
            return False
        self._items.append(item)
        if not self._rung:
            self._rung = True
            self._write(self._bell.fileno(), b"\0", 1)
        return True

    def close(self) -> None:
        """On the loop, once nothing more is put: hear what is left."""
        self._loop.remove_reader(self._ear)
        self._empty()
        self._bell.close()
        self._ear.close()

    def _empty(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(64)
        self._rung = False  # before looking: what comes later rings again
        while self._items:
            self._hear(self._items.popleft())


class Outlet(Generic[Item]):
    """Items for the one coroutine that takes them. ``asyncio.Queue`` asks for the loop, a call of the system's, each time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        """On the loop."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> Item:
        """The next item, in order; waits for it."""
        while not self._items:
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._items.popleft()
