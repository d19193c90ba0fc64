"""Costs and budgets as people see them."""

import io

from rich.console import Console
from rich.table import Table

from penstock.batch.v1 import batch_pb2
from penstock.common.v1 import usage_pb2
from penstock.routing.v1 import routing_service_pb2 as pb
from penstock_cli.views.batches import batch_lines
from penstock_cli.views.costs import budgets_table, costs_table


def shown(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def cost(tenant: str, amount: float, currency: str = "USD") -> pb.DailyCost:
    return pb.DailyCost(
        day="2026-01-31", tenant=tenant, model="m", requests=2, prompt_tokens=900,
        completion_tokens=100, prefill_s=1.5, decode_s=0.25, amount=amount, currency=currency,
    )  # fmt: skip


def test_costs_are_summed_for_each_currency_and_by_a_thousand_tokens() -> None:
    text = shown(costs_table([cost("a", 3.0), cost("b", 1.0), cost("c", 0.0, "")]))

    rows = [line for line in text.splitlines() if "all" in line]
    assert "4.00 USD" in rows[1]
    assert "2.00 USD" in rows[1], "of 2,000 tokens"
    assert "3.000" in rows[1]
    assert "USD" not in rows[0], "work without a price has none"
    assert all(name in text for name in ("2026-01-31", "a", "b", "c", "0.250"))


def test_a_budget_shows_what_is_left_and_until_when() -> None:
    budget = pb.BudgetState(
        tenant="a", amount=5, currency="USD", period="day", spent=6, resets_unix_s=86400
    )
    text = shown(budgets_table([budget]))

    assert all(part in text for part in ("5.00 USD a day", "6.00 USD", "0.00 USD", "1970-01-02"))


def test_a_batch_shows_its_cost_if_it_has_one() -> None:
    batch = batch_pb2.Batch(id="batch_a")
    assert "cost" not in shown(batch_lines(batch))
    batch.cost.CopyFrom(usage_pb2.Cost(amount=0.0123, currency="EUR"))
    assert "0.0123 EUR" in shown(batch_lines(batch))
