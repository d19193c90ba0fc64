"""``python -m penstock_batch serve``, ``work`` and ``flower``."""

import asyncio
import logging
import sys

from penstock_batch.queue.flower import flower
from penstock_batch.serve import serve
from penstock_batch.settings import BatchSettings
from penstock_batch.work import work
from penstock_core import lifecycle
from penstock_core.settings import SettingsError
from penstock_core.telemetry import logs

logger = logging.getLogger(__name__)

USAGE = """usage: python -m penstock_batch {serve,work,flower}

serve  BatchService over gRPC, and the reconciler
work   runs plans and shards from Celery's queue
flower shows that queue in a browser (needs the flower extra)

Settings (environment):
"""


def main(arguments: list[str]) -> int:
    """Run one of the processes; its exit status."""
    if arguments in (["--help"], ["-h"]):
        sys.stdout.write(f"{USAGE}{BatchSettings.describe()}\n")
        return 0
    if arguments not in (["serve"], ["work"], ["flower"]):
        return lifecycle.fail(USAGE.splitlines()[0])
    try:
        settings = BatchSettings.from_environment()
    except SettingsError as error:
        return lifecycle.fail(str(error))
    logs.configure("penstock-batch", settings.log_level)
    if arguments == ["work"]:
        return work(settings)
    if arguments == ["flower"]:
        return flower(settings)

    async def run(stop: asyncio.Event) -> None:
        await serve(settings, stop)

    return lifecycle.run(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
