"""What each tenant took of this worker: totals for metrics, and what is still to be booked.

Bounded in both: tenants beyond a number share a line. Told once a request, at its end; metrics are
read off at each scrape, so they cost a request nothing.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from time import time

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from penstock_core.cost.budgets import day_of
from penstock_core.cost.pricing import Price
from penstock_core.cost.spending import NOTHING, OTHERS, Account, Spent, nanos
from penstock_core.telemetry import semconv as sc
from penstock_engine.api import Share

_METER = "penstock.worker"
_MAX_PENDING = 1000


@dataclass(frozen=True, slots=True)
class Charge:
    """One attempt of a request that ended: whose, and what it took here."""

    tenant: str
    model: str
    share: Share
    prompt_tokens: int
    completion_tokens: int = 0


class Accounts:
    """Costs by tenant and model. ``metered_tenants``: how many have a line of their own in metrics."""

    def __init__(
        self, price: Price, metered_tenants: int, unix_time: Callable[[], float] = time
    ) -> None:
        self.price = price
        self._metered_tenants = metered_tenants
        self._unix_time = unix_time
        # Scrapes come from another thread.
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, str], Spent] = {}
        self._tenants: set[str] = set()
        self._pending: dict[Account, Spent] = {}
        self._measure()

    def charge(self, charge: Charge) -> None:
        """Note what an attempt took."""
        share = charge.share
        spent = Spent(
            requests=1,
            prompt_tokens=charge.prompt_tokens,
            completion_tokens=charge.completion_tokens,
            prefill_ns=nanos(share.prefill_s),
            decode_ns=nanos(share.decode_s),
            amount_nanos=nanos(self.price.of(share.seconds)),
        )
        currency = self.price.currency if self.price.is_set else ""
        account = Account(day_of(self._unix_time()), charge.tenant, charge.model, currency)
        with self._lock:
            label = (self._label(charge.tenant), charge.model)
            self._totals[label] = self._totals.get(label, NOTHING) + spent
            if len(self._pending) >= _MAX_PENDING and account not in self._pending:
                account = replace(account, tenant=OTHERS)
            self._pending[account] = self._pending.get(account, NOTHING) + spent

    def take_pending(self) -> Mapping[Account, Spent]:
        """What was charged since the last call."""
        with self._lock:
            pending, self._pending = self._pending, {}
        return pending

    def totals(self) -> Mapping[tuple[str, str], Spent]:
        """By tenant's label and model, since the start."""
        with self._lock:
            return dict(self._totals)

    def _label(self, tenant: str) -> str:
        if tenant not in self._tenants:
            if len(self._tenants) >= self._metered_tenants:
                return OTHERS
            self._tenants.add(tenant)
        return tenant

    def _measure(self) -> None:
        meter = metrics.get_meter(_METER)
        meter.create_observable_counter(
            sc.COST_TIME, [self._read(_times)], "s", "Seconds of workers, by who took them."
        )
        meter.create_observable_counter(
            sc.COST_AMOUNT, [self._read(self._amounts)], description="Price of those seconds."
        )
        meter.create_observable_counter(
            sc.COST_TOKENS, [self._read(_tokens)], "{token}", "Tokens by tenant and model."
        )

    def _amounts(self, labels: Mapping[str, str], spent: Spent) -> Iterable[Observation]:
        if self.price.is_set:
            yield Observation(spent.amount, {**labels, sc.CURRENCY: self.price.currency})

    def _read(
        self, observe: Callable[[Mapping[str, str], Spent], Iterable[Observation]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def callback(_options: CallbackOptions) -> Iterable[Observation]:
            return [
                observation
                for (tenant, model), spent in self.totals().items()
                for observation in observe({sc.TENANT: tenant, sc.REQUEST_MODEL: model}, spent)
            ]

        return callback


def _times(labels: Mapping[str, str], spent: Spent) -> Iterable[Observation]:
    yield Observation(spent.prefill_s, {**labels, sc.PHASE: "prefill"})
    yield Observation(spent.decode_s, {**labels, sc.PHASE: "decode"})


def _tokens(labels: Mapping[str, str], spent: Spent) -> Iterable[Observation]:
    yield Observation(spent.prompt_tokens, {**labels, sc.TOKEN_TYPE: "input"})
    yield Observation(spent.completion_tokens, {**labels, sc.TOKEN_TYPE: "output"})
