"""The ledger of costs in a real Redis: what was booked is there once, whatever happened meanwhile."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from penstock_core.cost.pricing import Price
from penstock_core.cost.spending import OTHERS, Account, SpendingLedger, Spent
from penstock_core.errors import Unavailable
from penstock_engine.api import Share
from penstock_testing.processes.redis import redis_server
from penstock_worker.accounting import bookkeeper as books
from penstock_worker.accounting.accounts import Accounts, Charge
from penstock_worker.accounting.bookkeeper import Bookkeeper

DAY = "1970-01-01"
Ledger = TypeVar("Ledger", bound=SpendingLedger)
ALL = [("a", kind, "USD") for kind in ("day", "week", "month")]


@pytest.fixture
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@asynccontextmanager
async def opened(ledger: Ledger) -> AsyncIterator[Ledger]:
    try:
        yield ledger
    finally:
        await ledger.close()


class Forgetful(SpendingLedger):
    """Books, and then does not answer, as often as it is told."""

    silences = 0

    async def book(self, writer: str, number: int, spent: Mapping[Account, Spent]) -> int:
        booked = await super().book(writer, number, spent)
        if self.silences:
            self.silences -= 1
            raise Unavailable("no answer")
        return booked


def accounts() -> Accounts:
    return Accounts(Price(3600.0, "USD"), 10, unix_time=lambda: 0.0)


def charge(tenant: str = "a") -> Charge:
    return Charge(tenant, "m", Share(0.25, 0.5), prompt_tokens=3, completion_tokens=4)


async def test_what_is_booked_is_told_by_account_and_by_period(redis_url: str) -> None:
    async with opened(SpendingLedger(redis_url)) as ledger:
        kept = accounts()
        first, second = (Bookkeeper(ledger, kept, writer) for writer in ("w1", "w2"))
        for keeper in (first, second, first):
            kept.charge(charge())
            await keeper.book()

        assert await ledger.costs([DAY, "1970-01-02"]) == {
            Account(DAY, "a", "m", "USD"): Spent(
                3, 9, 12, 750_000_000, 1_500_000_000, 2_250_000_000
            )
        }
        assert await ledger.spent(ALL, 0.0) == dict.fromkeys(ALL, 2.25)
        assert await ledger.spent(ALL, 40 * 24 * 3600.0) == dict.fromkeys(ALL, 0.0)


async def test_an_entry_without_an_answer_is_not_booked_twice(redis_url: str) -> None:
    async with opened(Forgetful(redis_url)) as ledger:
        kept = accounts()
        keeper = Bookkeeper(ledger, kept, "w")
        kept.charge(charge())
        ledger.silences = 1
        await keeper.book()
        kept.charge(charge())
        await keeper.book()

        assert await ledger.spent(ALL[:1], 0.0) == {ALL[0]: 1.5}


async def test_charges_wait_while_redis_is_away() -> None:
    kept = accounts()
    with redis_server() as gone:
        pass
    async with opened(SpendingLedger(gone)) as ledger:
        keeper = Bookkeeper(ledger, kept, "w")
        for _ in range(2):
            kept.charge(charge())
            await keeper.book()
        with redis_server() as url:
            async with opened(SpendingLedger(url)) as back:
                keeper._ledger = back
                await keeper.book()
                assert await back.spent(ALL[:1], 0.0) == {ALL[0]: 1.5}


async def test_a_day_with_very_many_accounts_takes_no_new_ones(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "MAX_FIELDS", 6)
    async with opened(SpendingLedger(redis_url)) as ledger:
        kept = accounts()
        keeper = Bookkeeper(ledger, kept, "w")
        for tenant in ("a", "b", "c", "a"):
            kept.charge(charge(tenant))
            await keeper.book()

        found = await ledger.costs([DAY])
        assert {a.tenant: s.requests for a, s in found.items()} == {"a": 2, OTHERS: 2}
