"""Builds and runs the work process: Celery's threads in front, one asyncio loop behind.

Threads, never processes: gRPC does not survive a fork, and all shards share one channel.
"""

import logging
import threading
import time
import warnings
from contextlib import AsyncExitStack

from celery import Celery, signals
from celery.exceptions import SecurityWarning

from penstock_batch.metrics import BatchMetrics
from penstock_batch.queue.app import build_app
from penstock_batch.queue.dispatch import CeleryQueue
from penstock_batch.queue.jobs import Jobs
from penstock_batch.queue.loop import LoopThread
from penstock_batch.queue.steward import Steward
from penstock_batch.queue.tasks import register
from penstock_batch.running.caller import CallOptions, LineCaller
from penstock_batch.running.finalizer import Finalizer
from penstock_batch.running.plan_job import PlanJob
from penstock_batch.running.pressure import Aimd, Gate
from penstock_batch.running.runner import ShardRunner
from penstock_batch.serve import open_objects, queue_options
from penstock_batch.settings import BatchSettings
from penstock_batch.stores.board import Board
from penstock_batch.stores.files import FileStore
from penstock_batch.stores.objects import Objects
from penstock_batch.stores.store import FactStore
from penstock_core import lifecycle
from penstock_core.ids import new_id
from penstock_core.rpc import server as rpc
from penstock_core.settings import SettingsError
from penstock_core.telemetry import setup as telemetry

logger = logging.getLogger(__name__)

_FIRST_WIDTH = 8


def work(settings: BatchSettings) -> int:
    """Run Celery's worker until SIGTERM; the exit status."""
    try:
        objects = open_objects(settings)
    except SettingsError as error:
        return lifecycle.fail(str(error))
    name = new_id("batch-work")
    with telemetry.start(
        "penstock-batch-work",
        instance=name,
        metrics_listen=settings.metrics_listen,
        tls=settings.tls(),
    ):
        app, loop = build_app(settings), LoopThread()
        loop.start()
        stack = AsyncExitStack()
        try:
            jobs = loop.run(build_jobs(settings, objects, app, stack))
            register(app, jobs, loop)
            return _run_celery(app, loop, settings, name)
        finally:
            loop.drain()
            loop.finish(stack.aclose())
            loop.close()


async def build_jobs(
    settings: BatchSettings, objects: Objects, app: Celery, stack: AsyncExitStack
) -> Jobs:
    """The process's objects, on the loop that they live on; ``stack`` closes them."""
    board = await stack.enter_async_context(Board(settings.redis_url, settings.redis_prefix))
    channel = await stack.enter_async_context(rpc.channel(settings.router, settings.tls()))
    gate = Gate(Aimd.starting(_FIRST_WIDTH, settings.line_concurrency))
    options = CallOptions(settings.line_timeout_s, settings.line_attempts, settings.service_key)
    store, files = FactStore(objects), FileStore(objects)
    queue = CeleryQueue(app, board, settings.redis_prefix)
    return Jobs(
        planner=PlanJob(store, files, settings.shard_lines, time.time),
        runner=ShardRunner(
            store, board, LineCaller(channel, gate, options), BatchMetrics(), time.time
        ),
        finalizer=Finalizer(store, files, time.time),
        steward=Steward(store, board, queue, queue_options(settings), time.time),
        board=board,
        lease_s=settings.lease_s,
    )


def _run_celery(app: Celery, loop: LoopThread, settings: BatchSettings, name: str) -> int:
    """Celery's worker; on SIGTERM running shards get the grace period, then go back to the queue."""

    def begin_drain(**_: object) -> None:
        timer = threading.Timer(settings.grace_s, loop.drain)
        timer.daemon = True
        timer.start()

    signals.worker_shutting_down.connect(begin_drain, weak=False)
    for noisy in ("celery.app.trace", "celery.worker.strategy"):
        # Two lines a task; failures are still logged.
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logger.getEffectiveLevel()))
    # About pickled messages when run as root; ours are JSON.
    warnings.simplefilter("ignore", SecurityWarning)
    worker = app.Worker(
        hostname=f"{name}@penstock",
        pool="threads",
        concurrency=settings.concurrency,
        without_gossip=True,
        without_mingle=True,
        loglevel=settings.log_level,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
