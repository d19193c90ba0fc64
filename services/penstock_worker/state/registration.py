"""Keeps a worker announced in the registry, whatever happens to the registry meanwhile."""

import asyncio
import logging

from penstock_core.errors import Unavailable
from penstock_core.registry import RENEW_S, RedisRegistry, WorkerEntry

logger = logging.getLogger(__name__)


class Registration:
    """Announces one worker again and again; says once when the registry goes and when it is back."""

    def __init__(
        self, registry: RedisRegistry, entry: WorkerEntry, renew_s: float = RENEW_S
    ) -> None:
        self._registry = registry
        self._entry = entry
        self._renew_s = renew_s
        self._is_announced = False
        self._is_lost = False

    async def run(self) -> None:
        """Announce until cancelled."""
        while True:
            await self._announce()
            await asyncio.sleep(self._renew_s)

    async def withdraw(self) -> None:
        """Take the announcement back; if the registry is away it runs out by itself."""
        try:
            await self._registry.withdraw(self._entry.worker_id)
        except Unavailable as error:
            logger.warning("could not withdraw from the registry: %s", error)

    async def _announce(self) -> None:
        try:
            await self._registry.announce(self._entry)
        except Unavailable as error:
            if not self._is_lost:
                logger.warning("cannot announce this worker, trying on: %s", error)
            self._is_lost = True
            return
        if self._is_lost or not self._is_announced:
            logger.info("announced as %s", self._entry.endpoint)
        self._is_announced, self._is_lost = True, False
