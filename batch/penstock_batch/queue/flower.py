"""Flower on our own Celery app: only that knows under which prefix the queue's keys lie."""

import importlib.util

from penstock_batch.queue.app import build_app
from penstock_batch.settings import BatchSettings
from penstock_core import lifecycle


def flower(settings: BatchSettings) -> int:
    """Serve Flower until SIGTERM; ``FLOWER_*`` variables configure it. The exit status."""
    if importlib.util.find_spec("flower") is None:
        return lifecycle.fail("Flower is not installed: pip install 'penstock[flower]'")
    build_app(settings).start(["flower"])
    return 0
