"""Periods, budgets in a key file, and prices."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock.common.v1 import usage_pb2
from penstock_core.cost.budgets import Budget, agreed_budgets, days_between, ends_at, period_of
from penstock_core.cost.pricing import (
    NO_PRICE,
    Price,
    add_costs,
    amount_text,
    parse_prices,
    to_micros,
)
from penstock_core.security.auth import KeyRing, digest


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("kind", "name", "end"),
    [
        ("day", "2026-12-31", "2027-01-01"),
        ("week", "2026-W53", "2027-01-04"),
        ("month", "2026-12", "2027-01-01"),
    ],
)
def test_a_period_has_a_name_and_an_end(kind: str, name: str, end: str) -> None:
    now = at("2026-12-31T23:59:59")
    assert period_of(kind, now) == name
    assert ends_at(kind, now) == at(end)
    assert period_of(kind, ends_at(kind, now)) != name


def test_a_key_file_gives_tenants_their_budgets(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    entry = {"sha256": digest("k"), "tenant": "a", "budget": {"amount": 5, "period": "day"}}
    path.write_text(json.dumps({"keys": [entry, {"sha256": digest("l"), "tenant": "b"}]}))

    ring = KeyRing.load(path)
    assert ring.budgets == {"a": Budget(5.0, "day", "USD")}
    assert ring.authenticate({"authorization": "Bearer k"}).tenant == "a"


@pytest.mark.parametrize(
    "budget",
    [{}, {"amount": -1}, {"amount": "5"}, {"amount": True}, {"amount": float("nan")},
     {"amount": 1, "period": "year"}, {"amount": 1, "currency": ""}, {"amount": 1, "a": 1}, 7],
)  # fmt: skip
def test_a_malformed_budget_is_refused(budget: object, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    entry = {"sha256": digest("k"), "tenant": "a", "budget": budget}
    path.write_text(json.dumps({"keys": [entry]}))
    with pytest.raises(ValueError, match="budget"):
        KeyRing.load(path)


def test_keys_of_one_tenant_agree_on_its_budget() -> None:
    first, second = ("a", Budget(1.0)), ("a", Budget(2.0))
    assert agreed_budgets([first, first, ("a", None), ("b", None)]) == {"a": Budget(1.0)}
    with pytest.raises(ValueError, match="two budgets"):
        agreed_budgets([first, second])


def test_days_are_counted_from_the_first_to_the_last() -> None:
    assert days_between("2026-02-27", "2026-03-01", 9) == ["2026-02-27", "2026-02-28", "2026-03-01"]
    for first, last in (("2026-03-01", "2026-02-28"), ("2026-01-01", "2026-01-10"), ("x", "y")):
        with pytest.raises(ValueError, match=r"day|format"):
            days_between(first, last, 9)


def test_prices_are_read_by_class() -> None:
    assert parse_prices(" cpu=0.04, h100 = 2.5 ,") == {"cpu": 0.04, "h100": 2.5}
    assert parse_prices("") == {}


@pytest.mark.parametrize("text", ["cpu", "cpu=", "=1", "cpu=-1", "cpu=nan", "cpu=inf", "a=1,a=2"])
def test_a_malformed_price_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="price"):
        parse_prices(text)


def test_an_hour_costs_its_price() -> None:
    cost = Price(3.6, "EUR").cost(900.0, 2700.0)
    assert cost.amount == pytest.approx(3.6)
    assert (cost.micros, cost.currency) == (3_600_000, "EUR")
    assert NO_PRICE.cost(1.0, 2.0) == usage_pb2.Cost(prefill_s=1.0, decode_s=2.0)


def test_costs_add_up_and_currencies_are_not_mixed() -> None:
    one = Price(3600.0, "USD").cost(0.25, 0.5)
    assert add_costs(one, one) == Price(3600.0, "USD").cost(0.5, 1.0)
    assert add_costs(one, NO_PRICE.cost(0.0, 1.0)).currency == "USD"
    assert add_costs(one, Price(3600.0, "EUR").cost(1.0, 0.0)).amount == pytest.approx(1.0)


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1.0, 1e300])
def test_what_a_caller_makes_up_overflows_nothing(amount: float) -> None:
    forged = usage_pb2.Cost(amount=amount, currency="USD")
    assert add_costs(forged, usage_pb2.Cost(amount=1.0)).micros <= 2**63
    assert to_micros(amount) >= 0


def test_small_amounts_keep_their_digits() -> None:
    assert amount_text(12.345, "USD") == "12.35 USD"
    assert amount_text(0.0000123, "USD") == "0.0000123 USD"
    assert amount_text(0.0, "USD") == "0.00 USD"
