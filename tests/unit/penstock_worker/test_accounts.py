"""A worker's accounts: bounded lines in metrics and in what waits to be booked."""

import pytest

from penstock_core.cost.pricing import NO_PRICE, Price
from penstock_core.cost.spending import OTHERS, Account, nanos
from penstock_engine.api import Share
from penstock_worker.accounting.accounts import Accounts, Charge

PRICE = Price(3600.0, "USD")


def accounts(price: Price = PRICE, metered: int = 2) -> Accounts:
    return Accounts(price, metered, unix_time=lambda: 0.0)


def charge(tenant: str, seconds: float = 1.0) -> Charge:
    return Charge(tenant, "m", Share(seconds, 2 * seconds), 10, 5)


def test_charges_add_up_by_day_tenant_and_model() -> None:
    kept = accounts()
    kept.charge(charge("a"))
    kept.charge(charge("a", 0.5))

    pending = kept.take_pending()
    assert list(pending) == [Account("1970-01-01", "a", "m", "USD")]
    (spent,) = pending.values()
    assert (spent.requests, spent.prompt_tokens, spent.completion_tokens) == (2, 20, 10)
    assert (spent.prefill_s, spent.decode_s, spent.amount) == pytest.approx((1.5, 3.0, 4.5))
    assert kept.take_pending() == {}


def test_without_a_price_time_is_kept_and_no_amount() -> None:
    kept = accounts(NO_PRICE)
    kept.charge(charge("a"))

    ((account, spent),) = kept.take_pending().items()
    assert (account.currency, spent.amount_nanos, spent.prefill_ns) == ("", 0, nanos(1.0))


def test_tenants_beyond_the_bound_share_a_line_in_metrics() -> None:
    kept = accounts(metered=2)
    for name in ("a", "b", "c", "d", "a"):
        kept.charge(charge(name))

    totals = kept.totals()
    assert set(totals) == {("a", "m"), ("b", "m"), (OTHERS, "m")}
    assert totals[OTHERS, "m"].requests == 2
    assert len(kept.take_pending()) == 4  # the ledger tells them apart


def test_what_waits_to_be_booked_is_bounded_and_loses_nothing() -> None:
    kept = accounts()
    for number in range(1500):
        kept.charge(charge(f"t{number}"))

    pending = kept.take_pending()
    assert len(pending) == 1001
    assert sum(spent.requests for spent in pending.values()) == 1500
