"""How much a tenant may spend in a period. Pure: periods of UTC's calendar, and the keys file's form."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

DAY, WEEK, MONTH = "day", "week", "month"
PERIODS = (DAY, WEEK, MONTH)


@dataclass(frozen=True, slots=True)
class Budget:
    """``amount`` in whole units of the currency, anew at the beginning of each period."""

    amount: float
    period: str = MONTH
    currency: str = "USD"

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> "Budget":
        """From ``{"amount": 25, "period": "month", "currency": "USD"}``.

        Raises:
            ValueError: it has another form.
        """
        if not isinstance(entry, Mapping) or not set(entry) <= {"amount", "period", "currency"}:
            raise ValueError(f"a budget has amount, period and currency, not {entry!r}")
        amount: Any = entry.get("amount")
        period = entry.get("period", MONTH)
        currency = entry.get("currency", "USD")
        is_amount = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not is_amount or not (math.isfinite(amount) and amount >= 0):
            raise ValueError(f"a budget's amount is a number of at least 0, not {amount!r}")
        if period not in PERIODS:
            raise ValueError(f"a budget's period is one of {', '.join(PERIODS)}, not {period!r}")
        if not isinstance(currency, str) or not currency:
            raise ValueError(f"a budget's currency is a code such as USD, not {currency!r}")
        return cls(float(amount), period, currency)


def agreed_budgets(found: Iterable[tuple[str, Budget | None]]) -> dict[str, Budget]:
    """Budgets by tenant, of (tenant, budget) pairs.

    Raises:
        ValueError: one tenant has two.
    """
    budgets: dict[str, Budget] = {}
    for tenant, budget in found:
        if budget is not None and budgets.setdefault(tenant, budget) != budget:
            raise ValueError(f"two budgets for the tenant {tenant!r}")
    return budgets


def day_of(unix_s: float) -> str:
    """The UTC day of a time, as 2026-01-31."""
    return _date(unix_s).isoformat()


def period_of(kind: str, unix_s: float) -> str:
    """The name of the period that a time lies in: 2026-01-31, 2026-W05 or 2026-01."""
    day = _date(unix_s)
    if kind == WEEK:
        year, week, _ = day.isocalendar()
        return f"{year}-W{week:02d}"
    return day.isoformat() if kind == DAY else f"{day.year:04d}-{day.month:02d}"


def ends_at(kind: str, unix_s: float) -> float:
    """Unix seconds at which the period that a time lies in ends."""
    day = _date(unix_s)
    if kind == DAY:
        following = day + timedelta(days=1)
    elif kind == WEEK:
        following = day + timedelta(days=7 - day.weekday())
    else:
        following = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return datetime(following.year, following.month, following.day, tzinfo=UTC).timestamp()


def days_between(first: str, last: str, most: int) -> list[str]:
    """The days from the first to the last.

    Raises:
        ValueError: no days, the wrong way round, or more than ``most``.
    """
    begin, end = date.fromisoformat(first), date.fromisoformat(last)
    count = (end - begin).days + 1
    if not 1 <= count <= most:
        raise ValueError(f"{first} to {last} are not between 1 and {most} days")
    return [(begin + timedelta(days=n)).isoformat() for n in range(count)]


def _date(unix_s: float) -> date:
    return datetime.fromtimestamp(unix_s, UTC).date()
