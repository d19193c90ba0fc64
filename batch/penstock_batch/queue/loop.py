"""The one asyncio loop of a work process, in a thread of its own.

It owns the gRPC channels and every client; Celery's threads hand coroutines over and wait. gRPC's
asyncio breaks when several loops of a process use it, and when a process forks.
"""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from penstock_core.errors import Draining

_T = TypeVar("_T")


class LoopThread:
    """Runs coroutines for other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._running: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._closing = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine and wait for its result.

        Raises:
            Draining: the process ends; the work was not done.
        """
        with self._lock:
            if self._closing:
                work.close()
                raise Draining("this process is ending")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._running.add(future)
        try:
            return future.result()
        except CancelledError as error:
            raise Draining("this process is ending") from error
        finally:
            with self._lock:
                self._running.discard(future)

    def drain(self) -> None:
        """Cancel what runs and refuse more; callers in ``run`` get Draining."""
        with self._lock:
            self._closing = True
            running = list(self._running)
        for future in running:
            future.cancel()

    def finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a last coroutine, after ``drain``."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Stop the thread. What runs should have ended."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
