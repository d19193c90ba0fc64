"""What tenants took of workers, by UTC day and model: a bounded ledger in the registry's Redis.

Workers write it, since they alone see each attempt's end in every mode; routers read it. Amounts
are whole numbers of nano-units, so that sums do not drift. Each writer's entries are numbered: what
an answer that got lost had already booked is not booked twice.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime

from redis.asyncio import Redis
from redis.exceptions import RedisError

from penstock_core.cost.budgets import PERIODS, period_of
from penstock_core.errors import Unavailable
from penstock_core.redis_client import connect
from penstock_core.rpc.cancellation import heeded_cancellation

OTHERS = "(others)"
MAX_FIELDS = 60_000
_NANO = 1_000_000_000
_TIMEOUT_S = 2.0
_KEPT_S = 400 * 24 * 3600
_WRITER_KEPT_S = 24 * 3600


@dataclass(frozen=True, slots=True, order=True)
class Account:
    """Whose costs, and for what. ``currency`` is empty for work without a price."""

    day: str
    tenant: str
    model: str
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Spent:
    """What an account took: whole numbers, times in nanoseconds and the amount in nano-units."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0
    amount_nanos: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        """The sum."""
        return Spent(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.prefill_ns + other.prefill_ns,
            self.decode_ns + other.decode_ns,
            self.amount_nanos + other.amount_nanos,
        )

    @property
    def prefill_s(self) -> float:
        """Seconds of prefill."""
        return self.prefill_ns / _NANO

    @property
    def decode_s(self) -> float:
        """Seconds of decoding."""
        return self.decode_ns / _NANO

    @property
    def amount(self) -> float:
        """In whole units of the currency."""
        return self.amount_nanos / _NANO


NOTHING = Spent()
_FIELDS = tuple(field.name for field in fields(Spent))


def nanos(amount: float) -> int:
    """A time or an amount as the ledger counts it."""
    return round(amount * _NANO)


class SpendingLedger:
    """Hashes ``penstock:costs:DAY`` for reports and ``penstock:spent:PERIOD`` for budgets."""

    def __init__(self, url: str, prefix: str = "penstock") -> None:
        self._redis = connect(url, _TIMEOUT_S)
        self._prefix = prefix

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def booked(self, writer: str) -> int:
        """Number of a writer's last entry that was booked. Raises Unavailable."""
        with _translated():
            return int(await self._redis.get(self._writer(writer)) or 0)

    async def book(self, writer: str, number: int, spent: Mapping[Account, Spent]) -> int:
        """Add to accounts, all of them or none; the fields that the fullest day has then.

        Raises:
            Unavailable: Redis does not answer. Whether it was booked ``booked`` tells.
        """
        days = sorted({account.day for account in spent})
        with _translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                for account, added in spent.items():
                    self._add(pipe, account, added)
                pipe.set(self._writer(writer), number, ex=_WRITER_KEPT_S)
                for day in days:
                    pipe.expire(self._costs(day), _KEPT_S)
                    pipe.hlen(self._costs(day))
                results = await pipe.execute()
        return max((int(count) for count in results[-2 * len(days) + 1 :: 2]), default=0)

    async def costs(self, days: Sequence[str]) -> dict[Account, Spent]:
        """Everything of some days. Raises Unavailable."""
        with _translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for day in days:
                    pipe.hgetall(self._costs(day))
                hashes = await pipe.execute()
        found: dict[Account, dict[str, int]] = {}
        for day, values in zip(days, hashes, strict=True):
            for field, value in values.items():
                tenant, model, currency, name = json.loads(field)
                figures = found.setdefault(Account(day, tenant, model, currency), {})
                if name in _FIELDS:
                    figures[name] = int(value)
        return {account: Spent(**figures) for account, figures in sorted(found.items())}

    async def spent(
        self, wanted: Iterable[tuple[str, str, str]], unix_s: float
    ) -> dict[tuple[str, str, str], float]:
        """What was spent in the current period, for each (tenant, kind of period, currency).

        Raises:
            Unavailable: Redis does not answer.
        """
        asked = list(wanted)
        with _translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for tenant, kind, currency in asked:
                    key = self._spent(period_of(kind, unix_s))
                    pipe.hget(key, json.dumps([tenant, currency]))
                values = await pipe.execute()
        return {one: int(value or 0) / _NANO for one, value in zip(asked, values, strict=True)}

    def _add(self, pipe: "Redis", account: Account, added: Spent) -> None:
        for name in _FIELDS:
            if value := getattr(added, name):
                field = json.dumps([account.tenant, account.model, account.currency, name])
                pipe.hincrby(self._costs(account.day), field, value)
        if not added.amount_nanos:
            return
        noon = datetime.fromisoformat(f"{account.day}T12:00+00:00").timestamp()
        for kind in PERIODS:
            key = self._spent(period_of(kind, noon))
            field = json.dumps([account.tenant, account.currency])
            pipe.hincrby(key, field, added.amount_nanos)
            pipe.expire(key, _KEPT_S)

    def _costs(self, day: str) -> str:
        return f"{self._prefix}:costs:{day}"

    def _spent(self, period: str) -> str:
        return f"{self._prefix}:spent:{period}"

    def _writer(self, writer: str) -> str:
        return f"{self._prefix}:costs-writer:{writer}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        with heeded_cancellation():
            yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"the ledger of costs does not answer: {error}") from error
