"""``penstock generate``: one completion, shown as it comes."""

import sys
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated

import typer

from penstock_cli.execution import notes, output, run
from penstock_cli.failures import CommandFailed
from penstock_cli.options import (
    DEFAULT_TARGET,
    Adapter,
    ApiKey,
    Json,
    MaxTokens,
    Model,
    Seed,
    Target,
    Temperature,
    Way,
    own_tls,
)
from penstock_cli.views.amounts import duration
from penstock_cli.views.documents import to_json
from penstock_client import AsyncClient, Delta, GenerateOptions, Generation
from penstock_client.results import Collector
from penstock_core.cost.pricing import amount_text

EPILOG = "Example: penstock generate 'def fibonacci(n):' --max-tokens 64 --temperature 0"


def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; '-' reads standard input.")],
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = "",
    model: Model = "",
    max_tokens: MaxTokens = 64,
    temperature: Temperature = None,
    seed: Seed = None,
    adapter: Adapter = "",
    *,
    mode: Way = "lookaside",
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Take the kept answer of an equal greedy or seeded request."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Continue a text and show it as it comes."""
    text = sys.stdin.read() if prompt == "-" else prompt
    options = GenerateOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        adapter=adapter,
        response_cache="use" if cache else "off",
    )

    async def work() -> None:
        async with AsyncClient(target, api_key=api_key or None, tls=own_tls(), mode=mode) as client:
            whole = await streamed(client, text, options, model=model, show=not as_json)
        if as_json:
            output.out(to_json(asdict(whole)), highlight=False)
        else:
            notes.print(summary(whole), style="dim", markup=False)

    run(work())


async def streamed(
    client: AsyncClient, prompt: str, options: GenerateOptions, *, model: str, show: bool
) -> Generation:
    """Generate, writing the text to standard output as it comes if ``show``."""
    collector = Collector()
    async with aclosing(client.stream(prompt, model=model or None, options=options)) as events:
        async for event in events:
            collector.add(event)
            if show and isinstance(event, Delta):
                output.out(event.text, end="", highlight=False)
    if show:
        output.out("")
    try:
        return collector.result()
    except ValueError as error:
        raise CommandFailed(str(error)) from error


def summary(whole: Generation) -> str:
    """The numbers people judge by, in a line."""
    usage, timing = whole.usage, whole.timing
    if whole.from_response_cache:
        return f"{usage.completion_tokens} tokens, kept from an equal request; {whole.worker_id}"
    cost = f"{amount_text(whole.cost.amount, whole.cost.currency)}; " if whole.cost else ""
    return (
        f"{usage.completion_tokens} tokens; TTFT {duration(timing.ttft_s)}, "
        f"TPOT {duration(timing.tpot_s)}; {usage.cached_tokens} of {usage.prompt_tokens} prompt "
        f"tokens from the cache; {cost}{whole.worker_id} ({whole.started.mode}); "
        f"penstock explain {whole.request_id}"
    )
