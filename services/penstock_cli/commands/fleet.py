"""``penstock fleet``: the workers as the router sees them."""

from contextlib import aclosing
from typing import Annotated

import typer
from rich.live import Live

from penstock_cli.execution import output, run
from penstock_cli.options import DEFAULT_TARGET, ApiKey, Json, Target, own_tls
from penstock_cli.views.documents import messages_to_json
from penstock_cli.views.fleet import fleet_table
from penstock_client import AsyncClient

EPILOG = "Example: penstock fleet --watch"


def fleet(
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = "",
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and follow each change.")] = False,
    as_json: Json = False,
) -> None:
    """Show the workers: state, load and cache."""

    async def work() -> None:
        async with AsyncClient(target, api_key=api_key or None, tls=own_tls()) as client:
            if watch and not as_json:
                await _follow(client)
                return
            workers = await client.workers()
        if as_json:
            output.out(messages_to_json(workers), highlight=False)
        else:
            output.print(fleet_table(workers))

    run(work())


async def _follow(client: AsyncClient) -> None:
    with Live(console=output, auto_refresh=False) as live:
        async with aclosing(client.watch_workers()) as views:
            async for workers in views:
                live.update(fleet_table(workers), refresh=True)
