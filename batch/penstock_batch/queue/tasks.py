"""Celery's tasks: ids in, nothing out; each hands its job to the process's loop and waits."""

from collections.abc import Coroutine

from celery import Celery
from celery.exceptions import Reject

from penstock_batch.queue.app import TASK_NAMES
from penstock_batch.queue.jobs import Jobs
from penstock_batch.queue.loop import LoopThread
from penstock_core.errors import Draining


def register(app: Celery, jobs: Jobs, loop: LoopThread) -> None:
    """Give the app its tasks; needed in work processes only."""

    def run(work: Coroutine[None, None, None]) -> None:
        try:
            loop.run(work)
        except Draining as error:
            # Back into the queue for another process, now rather than after the timeout.
            raise Reject(error, requeue=True) from error

    @app.task(name=TASK_NAMES["plan"])
    def plan(batch_id: str) -> None:
        run(jobs.plan(batch_id))

    @app.task(name=TASK_NAMES["shard"])
    def run_shard(batch_id: str, shard: int) -> None:
        run(jobs.run_shard(batch_id, shard))

    @app.task(name=TASK_NAMES["finalize"])
    def finalize(batch_id: str) -> None:
        run(jobs.finalize(batch_id))
