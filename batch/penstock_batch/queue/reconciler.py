"""The loop that heals: looks at every open batch and has its steward enqueue what is missing.

After a loss of Redis, of the queue's messages or of every process, this is what goes on.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from penstock_batch.metrics import BatchMetrics
from penstock_batch.queue.steward import Steward
from penstock_batch.stores.store import FactStore
from penstock_core.errors import PenstockError

logger = logging.getLogger(__name__)

_ORPHAN_S = 3600.0


class Reconciler:
    """Looks at all open batches, most urgent first, at a fixed interval."""

    def __init__(
        self,
        store: FactStore,
        steward: Steward,
        metrics: BatchMetrics,
        interval_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._steward = steward
        self._metrics = metrics
        self._interval_s = interval_s
        self._clock = clock

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except PenstockError as error:
                logger.warning("could not look at the open batches: %s", error)
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Look once. One batch's failure keeps no other from going on.

        Raises:
            Unavailable: the open batches cannot be listed.
        """
        by_deadline: list[tuple[float, str]] = []
        for batch_id in await self._store.open_batches():
            with _alone(batch_id):
                created = (await self._store.load(batch_id)).created
                if created is not None:
                    by_deadline.append((created.expires, batch_id))
                elif self._clock() - _born(batch_id) > _ORPHAN_S:
                    # Its creator died between the index and the fact; nobody was told of it.
                    await self._store.close_batch(batch_id)
        self._metrics.open_batches(len(by_deadline))
        for _, batch_id in sorted(by_deadline):
            with _alone(batch_id):
                await self._steward.advance(batch_id)


@contextmanager
def _alone(batch_id: str) -> Iterator[None]:
    """One batch's failure is logged and keeps no other batch from going on."""
    try:
        yield
    except PenstockError as error:
        logger.warning("batch %s cannot go on now: %s", batch_id, error)


def _born(batch_id: str) -> float:
    """Unix seconds at which a timed id was made; 0 for any other."""
    try:
        return int(batch_id.partition("_")[2][:12], 16) / 1000
    except ValueError:
        return 0.0
