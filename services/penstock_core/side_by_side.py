"""Work on many things, a few at a time; the first failure ends the rest and comes out as it is."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from penstock_core.errors import PenstockError

S = TypeVar("S")
T = TypeVar("T")


async def side_by_side(
    items: Sequence[S], work: Callable[[int, S], Awaitable[T]], at_once: int
) -> list[T]:
    """What ``work`` makes of each item and its index, in the items' order.

    Args:
        items: what to work on.
        work: called for one item; cancelled if another fails.
        at_once: most that run at a time.

    Raises:
        PenstockError: the first failure.
        ExceptionGroup: what went wrong was none of these.
    """
    turns = asyncio.Semaphore(at_once)

    async def in_turn(index: int, item: S) -> T:
        async with turns:
            return await work(index, item)

    failure: PenstockError | None = None
    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(in_turn(i, item)) for i, item in enumerate(items)]
    except* PenstockError as failures:
        failure = _first(failures)
    if failure is not None:  # raised there, early releases of Python 3.11 would wrap it in a group
        raise failure
    return [task.result() for task in tasks]


def _first(failures: BaseExceptionGroup[PenstockError]) -> PenstockError:
    first = failures.exceptions[0]
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
