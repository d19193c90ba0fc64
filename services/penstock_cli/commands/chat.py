"""``penstock chat``: a conversation, interactive or one message."""

import signal
from typing import Annotated

import typer

from penstock_cli.execution import failures_told, notes, output
from penstock_cli.options import (
    DEFAULT_TARGET,
    Adapter,
    ApiKey,
    MaxTokens,
    Model,
    Target,
    Temperature,
    Way,
    own_tls,
)
from penstock_client import Client, Completed, Delta, GenerateOptions, Message
from penstock_core.cost.pricing import amount_text

EPILOG = "Example: penstock chat --message 'What does os.walk do?' --max-tokens 64"


def chat(
    message: Annotated[str, typer.Option("--message", "-m", help="Say this, then end.")] = "",
    system: Annotated[str, typer.Option(help="Instructions before the first turn.")] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = "",
    model: Model = "",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = None,
    adapter: Adapter = "",
    *,
    mode: Way = "lookaside",
) -> None:
    """Talk with a model. An empty line or Ctrl-D ends it."""
    options = GenerateOptions(
        max_tokens=max_tokens, temperature=temperature, priority="interactive", adapter=adapter
    )
    turns = [Message("system", system)] if system else []
    # A shell starts background jobs with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (
        failures_told(),
        Client(target, api_key=api_key or None, tls=own_tls(), mode=mode) as client,
    ):
        if message:
            _turn(client, turns, message, options, model)
            return
        notes.print("An empty line or Ctrl-D ends the conversation.", style="dim")
        while said := _ask():
            _turn(client, turns, said, options, model)


def _ask() -> str:
    try:
        return notes.input("[bold]> [/]").strip()
    except EOFError:
        notes.print()
        return ""


def _turn(
    client: Client, turns: list[Message], said: str, options: GenerateOptions, model: str
) -> None:
    """One exchange; both sides of it become part of the conversation."""
    turns.append(Message("user", said))
    parts: list[str] = []
    cost = ""
    for event in client.stream(turns, model=model or None, options=options):
        if isinstance(event, Delta):
            parts.append(event.text)
            output.out(event.text, end="", highlight=False)
        if isinstance(event, Completed) and event.cost is not None:
            cost = amount_text(event.cost.amount, event.cost.currency)
    output.out("")
    if cost:
        notes.print(cost, style="dim", markup=False)
    turns.append(Message("assistant", "".join(parts)))
