"""Keeps cancellations that a library would lose.

``asyncio.wait_for`` of Python 3.11 returns the result and forgets the cancellation if both are
there at once. redis-py calls it for every write, so that a call to Redis is easily deaf to being
cancelled, and a loop around it would never end.

Source: https://github.com/python/cpython/issues/86296
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heeded_cancellation() -> Iterator[None]:
    """End with CancelledError if the task was cancelled within, whatever became of that there."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError
