"""Carries a worker's accounts into the ledger, about once a second and once more at the end.

An entry whose booking got no answer is looked up before it is booked again, so nothing counts twice;
while Redis is away, charges wait here, bounded by the accounts they belong to.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace

from penstock_core.cost.spending import MAX_FIELDS, NOTHING, OTHERS, Account, SpendingLedger, Spent
from penstock_core.errors import Unavailable
from penstock_worker.accounting.accounts import Accounts

logger = logging.getLogger(__name__)

BOOK_S = 1.0
_LAST_TRY_S = 3.0


class Bookkeeper:
    """Books one worker's charges; ``writer`` is its epoch."""

    def __init__(self, ledger: SpendingLedger, accounts: Accounts, writer: str) -> None:
        self._ledger = ledger
        self._accounts = accounts
        self._writer = writer
        self._number = 0
        self._entry: Mapping[Account, Spent] = {}
        self._known: set[Account] = set()
        self._is_full = False
        self._is_lost = False

    async def run(self, every_s: float = BOOK_S) -> None:
        """Book until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await self.book()

    async def release(self) -> None:
        """Let go of the ledger; what was not booked is lost, as in a crash."""
        await self._ledger.close()

    async def close(self) -> None:
        """Book what is left, if the ledger answers soon, and let go of it."""
        try:
            async with asyncio.timeout(_LAST_TRY_S):
                await self.book()
        except TimeoutError:
            logger.warning("the last costs could not be booked in time")
        await self._ledger.close()

    async def book(self) -> None:
        """Book what was charged; what cannot be booked now stays for the next time."""
        try:
            if self._entry:  # no answer came the last time, or we were cancelled
                if await self._ledger.booked(self._writer) < self._number:
                    await self._ledger.book(self._writer, self._number, self._entry)
                self._entry = {}
            if pending := self._accounts.take_pending():
                self._number += 1
                self._entry = self._bounded(pending)
                fields = await self._ledger.book(self._writer, self._number, self._entry)
                self._remember(fields)
                self._entry = {}
        except Unavailable as error:
            if not self._is_lost:
                logger.warning("costs cannot be booked now, trying on: %s", error)
            self._is_lost = True
        else:
            self._is_lost = False

    def _bounded(self, pending: Mapping[Account, Spent]) -> Mapping[Account, Spent]:
        """On a day that has very many accounts, those that are new share one."""
        if not self._is_full:
            return pending
        bounded: dict[Account, Spent] = {}
        for account, spent in pending.items():
            chosen = account if account in self._known else replace(account, tenant=OTHERS)
            bounded[chosen] = bounded.get(chosen, NOTHING) + spent
        return bounded

    def _remember(self, fields: int) -> None:
        today = max(account.day for account in self._entry)
        self._known = {a for a in (*self._known, *self._entry) if a.day == today}
        self._is_full = fields >= MAX_FIELDS
