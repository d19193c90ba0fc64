"""``penstock explain``: why a request went where it went."""

from typing import Annotated

import typer

from penstock_cli.execution import output, run
from penstock_cli.options import DEFAULT_TARGET, ApiKey, Json, Target, own_tls
from penstock_cli.views.decision import decision_view
from penstock_cli.views.documents import to_dict, to_json
from penstock_client import AsyncClient

EPILOG = "Example: penstock explain req_0123456789abcdef01234567"
_DECISION_PREFIX = "dec_"


def explain(
    name: Annotated[str, typer.Argument(metavar="REQUEST_ID|DECISION_ID")],
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = "",
    *,
    as_json: Json = False,
) -> None:
    """Show a routing decision: every candidate's terms, the reason, and what then happened."""

    async def work() -> None:
        by_decision = name.startswith(_DECISION_PREFIX)
        async with AsyncClient(target, api_key=api_key or None, tls=own_tls()) as client:
            answer = await client.explain(
                decision_id=name if by_decision else "", request_id="" if by_decision else name
            )
        if as_json:
            output.out(to_json(to_dict(answer)), highlight=False)
        else:
            output.print(decision_view(answer))

    run(work())
