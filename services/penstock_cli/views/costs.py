"""Costs and budgets as tables."""

import time
from collections.abc import Sequence

from rich.table import Table

from penstock.routing.v1 import routing_service_pb2 as pb
from penstock_core.cost.pricing import amount_text

_NO_PRICE = "-"


def costs_table(costs: Sequence[pb.DailyCost]) -> Table:
    """One row a day, tenant and model, and a sum for each currency."""
    table = Table()
    for name in ("day", "tenant", "model"):
        table.add_column(name)
    for name in ("requests", "tokens in", "tokens out", "prefill s", "decode s", "cost", "per 1k"):
        table.add_column(name, justify="right")
    for cost in costs:
        table.add_row(cost.day, cost.tenant, cost.model, *_figures(cost))
    for currency in sorted({cost.currency for cost in costs}):
        parts = [cost for cost in costs if cost.currency == currency]
        table.add_row("all", "", "", *_figures(_sum(parts, currency)), style="bold")
    return table


def budgets_table(budgets: Sequence[pb.BudgetState]) -> Table:
    """One row a budget."""
    table = Table()
    for name in ("tenant", "budget", "spent", "left", "anew at (UTC)"):
        table.add_column(name)
    for budget in budgets:
        left = max(budget.amount - budget.spent, 0.0)
        table.add_row(
            budget.tenant,
            f"{amount_text(budget.amount, budget.currency)} a {budget.period}",
            amount_text(budget.spent, budget.currency),
            amount_text(left, budget.currency),
            time.strftime("%Y-%m-%d", time.gmtime(budget.resets_unix_s)),
        )
    return table


def _figures(cost: pb.DailyCost) -> list[str]:
    tokens = cost.prompt_tokens + cost.completion_tokens
    has_price, thousand = bool(cost.currency), max(tokens, 1) / 1000
    return [
        str(cost.requests),
        str(cost.prompt_tokens),
        str(cost.completion_tokens),
        f"{cost.prefill_s:.3f}",
        f"{cost.decode_s:.3f}",
        amount_text(cost.amount, cost.currency) if has_price else _NO_PRICE,
        amount_text(cost.amount / thousand, cost.currency) if has_price else _NO_PRICE,
    ]


def _sum(costs: Sequence[pb.DailyCost], currency: str) -> pb.DailyCost:
    return pb.DailyCost(
        requests=sum(cost.requests for cost in costs),
        prompt_tokens=sum(cost.prompt_tokens for cost in costs),
        completion_tokens=sum(cost.completion_tokens for cost in costs),
        prefill_s=sum(cost.prefill_s for cost in costs),
        decode_s=sum(cost.decode_s for cost in costs),
        amount=sum(cost.amount for cost in costs),
        currency=currency,
    )
