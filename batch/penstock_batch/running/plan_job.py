"""Validates a batch's input and stores the plan: the shards' work first, then the fact."""

import asyncio
from collections.abc import Callable

from penstock_batch.planning.planner import Plan, make_plan
from penstock_batch.planning.records import dump_work
from penstock_batch.planning.validator import check_input
from penstock_batch.running.runner import work_object
from penstock_batch.state.facts import Created, Ending, Outcome, Planned, Problem
from penstock_batch.stores.files import FileStore
from penstock_batch.stores.store import FactStore
from penstock_core.errors import NotFound
from penstock_core.ids import new_id


class PlanJob:
    """Plans batches."""

    def __init__(
        self, store: FactStore, files: FileStore, shard_lines: int, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._files = files
        self._shard_lines = shard_lines
        self._clock = clock

    async def run(self, batch_id: str) -> None:
        """Plan a batch, or end it as failed; nothing if that was done.

        Raises:
            Unavailable: the store does not answer.
        """
        facts = await self._store.load(batch_id)
        if facts.created is None or facts.planned is not None or facts.outcome is not None:
            return
        plan, problems = await self._read(facts.created)
        if plan is None:
            outcome = Outcome(self._clock(), Ending.FAILED, problems=problems)
            await self._store.put(batch_id, outcome)
            return
        await self._store_plan(batch_id, plan)

    async def _read(self, created: Created) -> tuple[Plan | None, tuple[Problem, ...]]:
        try:
            data = await self._files.read(created.tenant, created.input_file_id)
        except NotFound:
            gone = Problem("file_not_found", "The input file does not exist any more.")
            return None, (gone,)
        # 50,000 lines take seconds to parse; other steps share the loop.
        return await asyncio.to_thread(_plan, data, created.endpoint, self._shard_lines)

    async def _store_plan(self, batch_id: str, plan: Plan) -> None:
        planned = Planned(
            at=self._clock(),
            prefix=f"batches/{batch_id}/work/{new_id('plan')}",
            shards=len(plan.shards),
            lines=plan.lines,
            deduplicated=plan.deduplicated,
            model=plan.model,
            digest=plan.digest(),
        )
        for shard, works in enumerate(plan.shards):
            await self._store.objects.put(work_object(planned, shard), dump_work(works))
        if not await self._store.put(batch_id, planned):
            for shard in range(planned.shards):
                await self._store.objects.delete(work_object(planned, shard))


def _plan(data: bytes, endpoint: str, shard_lines: int) -> tuple[Plan | None, tuple[Problem, ...]]:
    checked = check_input(data, endpoint)
    if checked.problems:
        return None, checked.problems
    return make_plan(checked.lines, shard_lines), ()
