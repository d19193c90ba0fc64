"""What Celery's tasks do: take the step's lease, do the work, see what is next.

The lease only saves work (nobody runs a step that somebody runs); that each result counts once is
the facts' doing.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from penstock_batch.queue.steward import Steward
from penstock_batch.running.finalizer import Finalizer
from penstock_batch.running.plan_job import PlanJob
from penstock_batch.running.runner import ShardRunner
from penstock_batch.state.steps import FINALIZE, PLAN, Step, shard_step
from penstock_batch.stores.board import Board
from penstock_core.errors import Unavailable
from penstock_core.ids import new_id

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Jobs:
    """The three kinds of steps. Each may be called any number of times, at once too."""

    planner: PlanJob
    runner: ShardRunner
    finalizer: Finalizer
    steward: Steward
    board: Board
    lease_s: float

    async def plan(self, batch_id: str) -> None:
        """Validate and cut a batch."""
        async with self._holding(batch_id, Step(PLAN)) as free:
            if free:
                await self.planner.run(batch_id)

    async def run_shard(self, batch_id: str, shard: int) -> None:
        """Run one shard."""
        async with self._holding(batch_id, shard_step(shard)) as free:
            if free:
                await self.runner.run(batch_id, shard)

    async def finalize(self, batch_id: str) -> None:
        """End a batch."""
        async with self._holding(batch_id, Step(FINALIZE)) as free:
            if free:
                await self.finalizer.run(batch_id)

    @asynccontextmanager
    async def _holding(self, batch_id: str, step: Step) -> AsyncIterator[bool]:
        """Hold a step's lease; whether it was free. Afterwards the next steps are enqueued."""
        owner = new_id("run")
        if not await self.board.begin(batch_id, step, owner, self.lease_s):
            yield False
            return
        renewal = asyncio.create_task(self._renew(batch_id, step, owner))
        pause_s = 0.0
        try:
            yield True
        except Exception:
            failures = await self.board.count_failure(batch_id, step)
            pause_s = min(_LONGEST_PAUSE_S, 0.5 * 2 ** min(failures, 10))
            raise
        finally:
            renewal.cancel()
            await self.board.end(batch_id, step, owner, pause_s)
        await self.board.touch(batch_id)
        await self.steward.advance(batch_id)

    async def _renew(self, batch_id: str, step: Step, owner: str) -> None:
        while True:
            await asyncio.sleep(self.lease_s / 3)
            try:
                await self.board.begin(batch_id, step, owner, self.lease_s)
            except Unavailable as error:
                logger.warning("the lease of %s %s was not renewed: %s", batch_id, step.name, error)
