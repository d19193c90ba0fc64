"""``penstock embed``: vectors of texts, and how alike they are."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from penstock_cli.execution import notes, output, run
from penstock_cli.options import DEFAULT_TARGET, ApiKey, Json, Model, Target, own_tls
from penstock_cli.views.documents import to_json
from penstock_cli.views.embeddings import leading, similarities
from penstock_client import AsyncClient, Pooling

EPILOG = "Example: penstock embed 'open a file' 'read a file' 'sort a list'"


def embed(
    texts: Annotated[list[str], typer.Argument(help="Texts; '-' reads one a line from stdin.")],
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = "",
    model: Model = "",
    pooling: Annotated[
        Pooling | None, typer.Option(help="How tokens' vectors become one; else as the model says.")
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option("--dimensions", "-d", help="Leading components to keep.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Embed texts and show how alike they are, or the vectors themselves with --json."""
    if texts == ["-"]:
        texts = [line for line in sys.stdin.read().splitlines() if line]

    async def work() -> None:
        async with AsyncClient(target, api_key=api_key or None, tls=own_tls()) as client:
            found = await client.embed(
                texts, model=model or None, pooling=pooling, dimensions=dimensions
            )
        if as_json:
            output.out(to_json(asdict(found)), highlight=False)
            return
        output.print(similarities(texts, found.vectors) if len(texts) > 1 else leading(found))
        said = f"{len(found.vectors)} vectors of {len(found.vectors[0])} components"
        notes.print(f"{said}; {found.prompt_tokens} tokens; {', '.join(found.worker_ids)}")

    run(work())
