"""API keys that change under a running process: read again within a second of a change.

A store that is away, or holds something that is no list of keys, changes nothing: the keys that
were known last go on to count.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from penstock_core.cost.budgets import Budget
from penstock_core.errors import Unavailable
from penstock_core.security.auth import KeyRing, Principal
from penstock_core.security.key_entries import KeyEntry, budgets_of
from penstock_core.security.key_stores import KeyStore, open_store
from penstock_core.settings import SettingsError

logger = logging.getLogger(__name__)

POLL_S = 0.5


class LiveKeys:
    """An authenticator over a store. ``load`` once, then ``run`` beside the server."""

    def __init__(self, store: KeyStore | None, poll_s: float = POLL_S) -> None:
        self._store = store
        self._poll_s = poll_s
        self._ring = KeyRing.open_to_all() if store is None else KeyRing({})
        self._version = ""
        self._trouble = ""

    def authenticate(self, headers: Mapping[str, str], method: str = "") -> Principal:
        """See ``penstock_core.security.auth.Authenticator``."""
        return self._ring.authenticate(headers, method)

    @property
    def asks(self) -> bool:
        """Whether callers need a key."""
        return not self._ring.is_open

    @property
    def budgets(self) -> Mapping[str, Budget]:
        """What tenants may spend, by tenant, as it is now."""
        return self._ring.budgets

    async def load(self) -> None:
        """Read the store. Raises Unavailable, ValueError."""
        if self._store is not None:
            # The version first: a change between the two is read twice rather than never.
            version = await self._store.version()
            self._ring = ring_of(await self._store.entries())
            self._version = version

    async def run(self) -> None:
        """Follow the store until cancelled."""
        while self._store is not None:
            await asyncio.sleep(self._poll_s)
            await self._look(self._store)

    async def _look(self, store: KeyStore) -> None:
        try:
            if await store.version() == self._version:
                self._trouble = ""
                return
            await self.load()
        except (Unavailable, ValueError) as error:
            if str(error) != self._trouble:
                logger.warning("going on with the API keys that are known: %s", error)
            self._trouble = str(error)
            return
        self._trouble = ""
        logger.info("read the API keys again: %d", len(self._ring.by_digest))


def ring_of(entries: list[KeyEntry]) -> KeyRing:
    """A ring that admits exactly these. Raises ValueError if their budgets contradict one another."""
    admitted = {entry.sha256: entry.principal() for entry in entries}
    return KeyRing(admitted, budgets=budgets_of(entries))


@asynccontextmanager
async def live_keys(files: str, url: str = "") -> AsyncIterator[LiveKeys]:
    """The keys of a process's settings, followed while the context lasts.

    Args:
        files: key files by comma.
        url: Redis that holds keys; with neither, everybody is admitted.

    Raises:
        SettingsError: both are given, or what is there are no keys.
    """
    if files and url:
        raise SettingsError("KEYS_FILE and KEYS_URL exclude each other")
    try:
        store = open_store(url or files) if url or files else None
        keys = LiveKeys(store)
        await keys.load()
    except (Unavailable, ValueError) as error:
        raise SettingsError(f"API keys: {error}") from error
    following = asyncio.create_task(keys.run())
    try:
        yield keys
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        if store is not None:
            await store.close()
