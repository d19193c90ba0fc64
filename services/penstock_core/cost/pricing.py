"""What a worker's time costs: a price list by class of machine, and amounts as they go over the wire.

Pure. One currency a fleet: amounts of two are never added.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.common.v1 import usage_pb2

MICROS = 1_000_000
_HOUR_S = 3600.0
_MOST_MICROS = 2**63


@dataclass(frozen=True, slots=True)
class Price:
    """Of an hour of a worker, in whole units of the currency (ISO 4217); 0 if it has none."""

    per_hour: float = 0.0
    currency: str = "USD"

    @property
    def is_set(self) -> bool:
        """Whether time costs anything."""
        return self.per_hour > 0

    def of(self, seconds: float) -> float:
        """Price of some time."""
        return seconds * self.per_hour / _HOUR_S

    def cost(self, prefill_s: float, decode_s: float) -> usage_pb2.Cost:
        """Time and its price on the wire; without a price there is no currency."""
        amount = self.of(prefill_s + decode_s)
        return usage_pb2.Cost(
            prefill_s=prefill_s,
            decode_s=decode_s,
            amount=amount,
            micros=to_micros(amount),
            currency=self.currency if self.is_set else "",
        )


NO_PRICE = Price()


def parse_prices(text: str) -> Mapping[str, float]:
    """Prices of an hour by class, from ``cpu=0.04,h100=2.5``.

    Raises:
        ValueError: no such list.
    """
    prices: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            price = float(number)
        except ValueError:
            price = math.nan
        if not name or not (math.isfinite(price) and price >= 0):
            raise ValueError(f"{part!r} is no price; they are written class=price, with commas")
        if name in prices:
            raise ValueError(f"two prices for {name!r}")
        prices[name] = price
    return prices


def to_micros(amount: float) -> int:
    """An amount in micro-units, rounded to the nearest; what is no amount counts as none."""
    if not amount > 0:
        return 0
    return min(round(amount * MICROS), _MOST_MICROS) if math.isfinite(amount) else _MOST_MICROS


def add_costs(first: usage_pb2.Cost, second: usage_pb2.Cost) -> usage_pb2.Cost:
    """The sum. Of two currencies the amount of the second stays, which is the later one's."""
    total = usage_pb2.Cost(
        prefill_s=first.prefill_s + second.prefill_s,
        decode_s=first.decode_s + second.decode_s,
        currency=second.currency or first.currency,
    )
    mixed = first.currency and second.currency and first.currency != second.currency
    total.amount = second.amount if mixed else first.amount + second.amount
    total.micros = to_micros(total.amount)
    return total


def amount_text(amount: float, currency: str) -> str:
    """For people: cents where there are some, else as many digits as say something."""
    digits = 2 if amount >= 1 or amount == 0 else min(2 - math.floor(math.log10(amount)), 9)
    return f"{amount:.{max(digits, 2)}f} {currency}"
