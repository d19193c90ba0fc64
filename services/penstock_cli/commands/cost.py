"""``penstock cost``: what tenants took of workers, by day and model."""

from typing import Annotated

import typer

from penstock_cli.execution import output, run
from penstock_cli.options import DEFAULT_TARGET, ApiKey, Json, Target
from penstock_cli.views.costs import budgets_table, costs_table
from penstock_cli.views.documents import to_dict, to_json
from penstock_client import AsyncClient

EPILOG = "Example: penstock cost --since 2026-01-01 --by tenant"


def cost(
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = "",
    since: Annotated[str, typer.Option(help="First UTC day, as 2026-01-31; default: today.")] = "",
    until: Annotated[str, typer.Option(help="Last UTC day; default: today.")] = "",
    tenant: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    model: Annotated[str, typer.Option("--model", "-M", help="Only of this model.")] = "",
    *,
    as_json: Json = False,
) -> None:
    """Show costs by tenant, model and day, and what is left of budgets.

    A key shows its own tenant's; a service key everybody's.
    """

    async def work() -> None:
        async with AsyncClient(target, api_key=api_key or None) as client:
            found = await client.costs(since, until, tenant=tenant, model=model)
        if as_json:
            output.out(to_json(to_dict(found)), highlight=False)
            return
        output.print(costs_table(found.costs))
        if found.budgets:
            output.print(budgets_table(found.budgets))

    run(work())
