"""Sends steps to Celery's queue and tells how full it is. Tasks carry ids only."""

import asyncio
from typing import Protocol

from celery import Celery
from kombu.exceptions import OperationalError

from penstock_batch.queue.app import PREFIX_SEPARATOR, QUEUE, TASK_NAMES, key_prefix
from penstock_batch.state.steps import LEVELS, Step
from penstock_batch.stores.board import Board
from penstock_core.errors import Unavailable


class StepQueue(Protocol):
    """Where steps wait for a work process."""

    async def send(self, batch_id: str, step: Step, level: int) -> None:
        """Enqueue a step; level 0 is the most urgent. Raises Unavailable."""
        ...

    async def backlog(self) -> int:
        """Steps that wait. Raises Unavailable."""
        ...


class CeleryQueue:
    """Celery's queue on Redis."""

    def __init__(self, app: Celery, board: Board, redis_prefix: str) -> None:
        self._app = app
        self._board = board
        base = f"{key_prefix(redis_prefix)}{QUEUE}"
        # Kombu's names: level 0 has none, the others are appended.
        self._keys = [f"{base}{PREFIX_SEPARATOR}{n}" if n else base for n in LEVELS]

    async def send(self, batch_id: str, step: Step, level: int) -> None:
        """Enqueue a step. Raises Unavailable."""
        args = [batch_id] if step.shard is None else [batch_id, step.shard]
        name = TASK_NAMES["shard" if step.shard is not None else step.name]
        try:
            await asyncio.to_thread(
                self._app.send_task, name, args=args, priority=level, queue=QUEUE, retry=False
            )
        except (OperationalError, OSError) as error:
            raise Unavailable(f"the queue does not answer: {error}") from error

    async def backlog(self) -> int:
        """Steps that wait. Raises Unavailable."""
        return await self._board.lengths(self._keys)
