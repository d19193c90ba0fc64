"""Budgets of tenants: what the ledger says they have spent, and who is refused for it.

Every router reads the same ledger about once a second and workers book about once a second, so a tenant
gets through what it spends in some two seconds, and what its running requests go on to take. A stream that
has begun may go on elsewhere until the budget is overdrawn by a tenth.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock_core.cost.budgets import Budget, ends_at, period_of
from penstock_core.cost.pricing import amount_text
from penstock_core.cost.spending import SpendingLedger
from penstock_core.errors import BudgetSpent, Unavailable
from penstock_router.metrics import RouterMetrics

logger = logging.getLogger(__name__)

READ_S = 1.0
_OVERDRAFT = 1.1


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was spent in a period, as of the last look."""

    period: str
    spent: float


class Budgets:
    """Admits and refuses by tenant. Without a ledger nothing has been spent."""

    def __init__(
        self,
        budgets: Callable[[], Mapping[str, Budget]],
        ledger: SpendingLedger | None,
        metrics: RouterMetrics,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._current = budgets
        self._ledger = ledger
        self._metrics = metrics
        self._unix_time = unix_time
        self._read: dict[str, _Reading] = {}
        self._is_lost = False
        metrics.watch_budgets(self.shares)

    @property
    def _budgets(self) -> Mapping[str, Budget]:
        """As keys have them by now."""
        return self._current()

    def check(self, tenant: str, *, has_begun: bool = False) -> None:
        """Let a request pass.

        Raises:
            BudgetSpent: the tenant's budget of this period is spent; it tells when the next begins.
        """
        budget = self._budgets.get(tenant)
        if budget is None:
            return
        spent = self.spent(tenant, budget)
        if spent < budget.amount * (_OVERDRAFT if has_begun else 1.0):
            return
        self._metrics.over_budget(tenant)
        now = self._unix_time()
        raise BudgetSpent(
            f"the budget of {amount_text(budget.amount, budget.currency)} a {budget.period} is spent: "
            f"{amount_text(spent, budget.currency)} so far",
            subject=f"tenant:{tenant}/budget:{budget.period}",
            retry_after_s=ends_at(budget.period, now) - now,
        )

    def spent(self, tenant: str, budget: Budget) -> float:
        """What is known to be spent in the period that runs now."""
        reading = self._read.get(tenant)
        is_current = reading and reading.period == period_of(budget.period, self._unix_time())
        return reading.spent if reading and is_current else 0.0

    def shares(self) -> Mapping[str, float]:
        """How much of each budget is spent, from 0 to 1 and beyond, by tenant."""
        return {
            tenant: self.spent(tenant, budget) / budget.amount if budget.amount else 1.0
            for tenant, budget in self._budgets.items()
        }

    def of(self, tenant: str) -> dict[str, Budget]:
        """A tenant's budget, if it has one; all budgets for the empty name."""
        return {t: b for t, b in self._budgets.items() if tenant in {"", t}}

    async def run(self, every_s: float = READ_S) -> None:
        """Look into the ledger again and again, until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(every_s)

    async def read(self) -> None:
        """Look into the ledger; what was known stays if it does not answer."""
        if self._ledger is None or not self._budgets:
            return
        now = self._unix_time()
        wanted = {t: (t, b.period, b.currency) for t, b in self._budgets.items()}
        try:
            spent = await self._ledger.spent(wanted.values(), now)
        except Unavailable as error:
            if not self._is_lost:
                logger.warning("budgets are not brought up to date: %s", error)
            self._is_lost = True
            return
        self._is_lost = False
        self._read = {
            tenant: _Reading(period_of(key[1], now), spent[key]) for tenant, key in wanted.items()
        }
