"""``penstock up``: the whole platform on this machine until Ctrl-C."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from penstock_cli.execution import notes, output, run
from penstock_cli.options import BATCH_PORT, GATEWAY_PORT, ROUTER_PORT, Quantization, Weights
from penstock_cli.supervisor.environment import Addresses, EngineChoice
from penstock_cli.supervisor.platform import Platform, PlatformOptions, running_platform
from penstock_core.cost.budgets import Budget
from penstock_core.cost.pricing import Price

EPILOG = "Example: penstock up --workers 2 --model Qwen/Qwen3-0.6B --port 8000"
_NEW_KEY = "new"
_DATA_DIR = Path(".penstock")

Keys = Annotated[
    str,
    typer.Option(
        help="Admit only callers with an API key: a file of hashed keys, or 'new' to make one key."
    ),
]

HourlyPrice = Annotated[
    float, typer.Option(min=0, help="Of an hour of a worker; requests then tell their cost.")
]
MonthlyBudget = Annotated[
    float | None,
    typer.Option(min=0, help="With --keys new: what may be spent with that key in a month."),
]
Adapters = Annotated[
    Path | None,
    typer.Option(
        exists=True, file_okay=False, help="Directory of LoRA adapters, as PEFT saves them."
    ),
]


class Speculation(StrEnum):
    """Where drafts come from; AUTO takes of prompt lookup, draft model and none what pays."""

    NONE = "none"
    NGRAM = "ngram"
    DRAFT = "draft"
    AUTO = "auto"


def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Decode workers.")] = 2,
    model: Annotated[str, typer.Option(help="'demo', a directory or a Hugging Face id.")] = "demo",
    speculation: Annotated[
        Speculation, typer.Option(help="Draft tokens and check them: same answers, sooner.")
    ] = Speculation.AUTO,
    draft_model: Annotated[
        str, typer.Option(help="Small model with the same tokenizer; the demo model brings one.")
    ] = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The gateway's; 0: any.")
    ] = GATEWAY_PORT,
    router_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any.")] = ROUTER_PORT,
    batch_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any.")] = BATCH_PORT,
    data_dir: Annotated[Path, typer.Option(help="Redis' file, batches and logs.")] = _DATA_DIR,
    keys: Keys = "",
    quantization: Quantization = Weights.NONE,
    price: HourlyPrice = 0.0,
    currency: Annotated[str, typer.Option(help="Of price and budget.")] = "USD",
    budget: MonthlyBudget = None,
    adapters: Adapters = None,
) -> None:
    """Serve until Ctrl-C: Redis, router, workers, batch service and gateway.

    What dies is started again; everything ends together.
    """
    folder = str(adapters.resolve()) if adapters else ""
    options = PlatformOptions(
        data_dir=data_dir, workers=workers, model=model,
        engine=EngineChoice(speculation.value, draft_model, quantization.value, adapters=folder),
        price=Price(price, currency),
        budget=None if budget is None else Budget(budget, currency=currency),
        host=host, gateway_port=port, router_port=router_port, batch_port=batch_port,
        require_key=bool(keys), keys_file=Path(keys) if keys not in {"", _NEW_KEY} else None,
    )  # fmt: skip
    # Ctrl-C is how this command ends, so it is a success.
    run(_serve(options), status_when_stopped=0)


async def _serve(options: PlatformOptions) -> None:
    async with running_platform(options, _say) as platform:
        with _announced(platform):
            _show(platform.addresses)
            try:
                await asyncio.Event().wait()
            finally:
                _say("stopping")


def _say(line: str) -> None:
    notes.print(line, style="dim", markup=False)


@contextmanager
def _announced(platform: Platform) -> Iterator[None]:
    """Leave the addresses in ``platform.json`` of the data folder, for scripts, while it runs."""
    path = platform.data_dir / "platform.json"
    addresses = {k: v for k, v in asdict(platform.addresses).items() if k != "api_key"}
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(addresses, indent=2), encoding="utf-8")
    draft.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _show(addresses: Addresses) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_row("OpenAI API", f"http://{addresses.gateway}/v1")
    table.add_row("gRPC router", addresses.router)
    table.add_row("gRPC batch", addresses.batch)
    table.add_row("workers", ", ".join(addresses.workers))
    table.add_row("metrics", f"http://{addresses.gateway}/metrics")
    for name, address in addresses.metrics.items():
        table.add_row("", f"http://{address}/metrics  ({name})")
    if addresses.api_key:
        table.add_row("API key", addresses.api_key)
    output.print(table)
    output.print(_examples(addresses), markup=False, soft_wrap=True)


def _examples(addresses: Addresses) -> str:
    key = addresses.api_key or "any"
    header = f" -H 'authorization: Bearer {key}'" if addresses.api_key else ""
    option = f" --api-key {key}" if addresses.api_key else ""
    return f"""
Try it:
  curl http://{addresses.gateway}/v1/models{header}
  penstock generate --target {addresses.router}{option} 'def fibonacci(n):'
  python -c "import openai; c = openai.OpenAI(base_url='http://{addresses.gateway}/v1', api_key='{key}'); \
print(c.completions.create(model=c.models.list().data[0].id, prompt='import os', max_tokens=32).choices[0].text)"
Ctrl-C stops everything.
"""
