"""``ListCosts``: the ledger as a caller may see it."""

import time
from collections.abc import Callable

from penstock.routing.v1 import routing_service_pb2 as pb
from penstock_core.cost.budgets import Budget, day_of, days_between, ends_at
from penstock_core.cost.spending import Account, SpendingLedger, Spent
from penstock_core.errors import InvalidRequest, NotSupported, PermissionDenied
from penstock_core.security.auth import Principal
from penstock_router.budgets import Budgets

MAX_DAYS = 366


class CostReports:
    """Reads costs and budgets for callers: of their own tenant, or of all with a service key."""

    def __init__(
        self,
        ledger: SpendingLedger | None,
        budgets: Budgets,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self.budgets = budgets
        self._unix_time = unix_time

    async def close(self) -> None:
        """Let go of the ledger."""
        if self._ledger is not None:
            await self._ledger.close()

    async def report(self, request: pb.ListCostsRequest, caller: Principal) -> pb.ListCostsResponse:
        """What was asked for, as far as the caller may know it.

        Raises:
            InvalidRequest: there are no such days.
            PermissionDenied: another tenant's costs are asked for.
            NotSupported: there is no ledger, since workers are a fixed list.
            Unavailable: the ledger does not answer.
        """
        if self._ledger is None:
            raise NotSupported("costs are kept in the registry's Redis, and this router has none")
        if not caller.is_service and request.tenant not in {"", caller.tenant}:
            raise PermissionDenied("this key may not see another tenant's costs")
        tenant = request.tenant if caller.is_service else caller.tenant
        costs = await self._ledger.costs(self._days(request))
        return pb.ListCostsResponse(
            costs=[
                _daily(account, spent)
                for account, spent in costs.items()
                if (not tenant or account.tenant == tenant) and request.model in {"", account.model}
            ],
            budgets=[self._state(name, budget) for name, budget in self.budgets.of(tenant).items()],
        )

    def _days(self, request: pb.ListCostsRequest) -> list[str]:
        today = day_of(self._unix_time())
        last = request.last_day or today
        try:
            return days_between(request.first_day or min(today, last), last, MAX_DAYS)
        except ValueError as error:
            raise InvalidRequest(f"no days: {error}", field="first_day") from error

    def _state(self, tenant: str, budget: Budget) -> pb.BudgetState:
        return pb.BudgetState(
            tenant=tenant,
            amount=budget.amount,
            currency=budget.currency,
            period=budget.period,
            spent=self.budgets.spent(tenant, budget),
            resets_unix_s=int(ends_at(budget.period, self._unix_time())),
        )


def _daily(account: Account, spent: Spent) -> pb.DailyCost:
    return pb.DailyCost(
        day=account.day,
        tenant=account.tenant,
        model=account.model,
        requests=spent.requests,
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.completion_tokens,
        prefill_s=spent.prefill_s,
        decode_s=spent.decode_s,
        amount=spent.amount,
        currency=account.currency,
    )
