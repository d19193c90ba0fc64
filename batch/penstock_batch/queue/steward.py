"""Keeps a batch going: looks at it, decides what is next (``steps``), enqueues that.

Called after every task, and again and again by the reconciler; any call may be lost or doubled.
"""

from collections.abc import Callable
from dataclasses import dataclass

from penstock_batch.queue.dispatch import StepQueue
from penstock_batch.state.steps import next_steps, open_steps, urgency
from penstock_batch.stores.board import Board
from penstock_batch.stores.store import FactStore


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """Most tasks in the queue, and after how many seconds a queued step is queued once more."""

    window: int
    requeue_after_s: float


class Steward:
    """Enqueues the next steps of batches."""

    def __init__(
        self,
        store: FactStore,
        board: Board,
        queue: StepQueue,
        options: QueueOptions,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._board = board
        self._queue = queue
        self._options = options
        self._clock = clock

    async def advance(self, batch_id: str) -> None:
        """Enqueue what a batch needs next and nobody holds.

        Raises:
            Unavailable: the store, Redis or the queue does not answer; the next call heals it.
        """
        facts = await self._store.load(batch_id)
        if facts.created is None:
            return
        if facts.outcome is not None:
            await self._store.close_batch(batch_id)
            return
        now = self._clock()
        leases = await self._board.leases(batch_id, open_steps(facts))
        wanted = next_steps(facts, leases, now)
        if not wanted:
            return
        room = self._options.window - await self._queue.backlog()
        # Planning and finalizing are few, and a batch waits for them.
        chosen = [step for step in wanted if step.shard is None]
        chosen += [step for step in wanted if step.shard is not None][: max(room, 0)]
        level = urgency(facts.created.expires, now)
        for step in chosen:
            if await self._board.claim(batch_id, step, self._options.requeue_after_s):
                await self._queue.send(batch_id, step, level)
