"""Limits that several routers enforce together: each asks Redis once for a request with limits.

Beside it each router keeps its own count. That refuses at once what is used up for certain, and
decides alone while Redis is away: then each of n routers admits what was left at most once, so a
key gets through n times its limit in the worst case, and nobody waits for Redis longer than its
store's timeout, once a second.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from penstock_core.auth import Principal
from penstock_core.errors import Unavailable
from penstock_core.quota_store import KEPT_S, QuotaStore, Settlement
from penstock_core.quotas import Claim, Quotas

logger = logging.getLogger(__name__)

SETTLE_S = 0.1
_KEEP_S = KEPT_S / 4
_AWAY_S = 1.0


class SharedQuotas:
    """The accounts of callers; without a store, of this process alone."""

    def __init__(self, clock: Callable[[], float], store: QuotaStore | None = None) -> None:
        self._own = Quotas(clock, tells=store is not None)
        self._clock = clock
        self._store = store
        self._away_until = 0.0
        self._is_away = False
        self._alone = 0

    def __len__(self) -> int:
        """Requests that count as open here."""
        return len(self._own)

    @property
    def decided_alone(self) -> int:
        """Requests with limits that were let in without the others' word, since the start."""
        return self._alone

    def check(self, principal: Principal) -> None:
        """See ``Quotas``: by our own count, which others' use can only lower."""
        self._own.check(principal)

    async def admit(
        self, principal: Principal, request_id: str, tokens: int, lease_s: float | None = None
    ) -> None:
        """See ``Quotas``; the same, by the word of all. Raises QuotaExceeded, Conflict."""
        claim = self._own.admit(principal, request_id, tokens, lease_s)
        if claim is None or self._store is None:
            return
        try:
            await self._agree(claim, self._store)
        except BaseException:
            # Refused, which it has undone, or cancelled before the answer.
            self._own.finish(request_id)
            raise

    @asynccontextmanager
    async def held(self, principal: Principal, request_id: str, tokens: int) -> AsyncIterator[None]:
        """A request that is over when the context ends. Raises as ``admit``."""
        await self.admit(principal, request_id, tokens)
        try:
            yield
        finally:
            self.finish(request_id)

    def used(self, request_id: str, tokens: int) -> None:
        """See ``Quotas``."""
        self._own.used(request_id, tokens)

    def began(self, request_id: str, tokens: int) -> None:
        """See ``Quotas``."""
        self._own.began(request_id, tokens)

    def ended(self, request_id: str, tokens: int, *, aborted: bool) -> None:
        """See ``Quotas``."""
        self._own.ended(request_id, tokens, aborted=aborted)

    def finish(self, request_id: str) -> None:
        """See ``Quotas``."""
        self._own.finish(request_id)

    async def run(self) -> None:
        """Tell the others what happened here, until cancelled."""
        kept_at = self._clock()
        while self._store is not None:
            await asyncio.sleep(SETTLE_S)
            keeps = self._clock() - kept_at >= _KEEP_S
            if keeps:
                kept_at = self._clock()
            await self.settle(keeps=keeps)

    async def settle(self, *, keeps: bool = False) -> None:
        """Tell now; ``keeps`` also what goes on."""
        told = self._own.tell()
        if self._store is None or self._clock() < self._away_until:
            self._own.untell(told)
            return
        kept = self._own.open_ids() if keeps else {}
        accounts = told.tokens.keys() | told.ended.keys() | kept.keys()
        if not accounts:
            return
        news = [
            Settlement(name, told.tokens.get(name, 0), told.ended.get(name, ()), kept.get(name, ()))
            for name in sorted(accounts)
        ]
        try:
            await self._store.settle(news)
        except Unavailable as error:
            self._own.untell(told)
            self._lost(error)

    async def close(self) -> None:
        """Tell what is left and let go."""
        if self._store is not None:
            await self.settle()
            await self._store.close()

    async def _agree(self, claim: Claim, store: QuotaStore) -> None:
        if self._clock() < self._away_until:
            self._alone += 1
            return
        try:
            verdict = await store.claim(claim)
        except Unavailable as error:
            self._alone += 1
            self._lost(error)
            return
        if self._is_away:
            logger.info("limits are counted together again")
        self._is_away = False
        self._own.agree(claim, verdict)

    def _lost(self, error: Unavailable) -> None:
        self._away_until = self._clock() + _AWAY_S
        if not self._is_away:
            logger.warning("limits are counted by this router alone: %s", error)
        self._is_away = True
