"""``penstock demo``: the main job once, on free ports and in a folder that goes afterwards."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from penstock_cli.demo.report import DemoReport, summary_table
from penstock_cli.demo.story import Story
from penstock_cli.execution import notes, output, run
from penstock_cli.options import Json
from penstock_cli.supervisor.platform import PlatformOptions, running_platform
from penstock_cli.views.amounts import duration
from penstock_cli.views.documents import to_json
from penstock_client import AsyncBatchClient, AsyncClient

EPILOG = "Example: penstock demo --json > demo.json"


def demo(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Decode workers.")] = 2,
    model: Annotated[str, typer.Option(help="'demo', a directory or a Hugging Face id.")] = "demo",
    output_dir: Annotated[Path, typer.Option(help="Where the batch's answers go.")] = Path(
        "build/demo"
    ),
    *,
    as_json: Json = False,
) -> None:
    """Start everything, stream a completion twice, run a batch of 64 lines, stop everything."""
    # With --json standard output is the document's alone, so the story goes to standard error.
    console = notes if as_json else output

    async def work() -> DemoReport:
        with _scratch() as data_dir:
            options = PlatformOptions(
                data_dir=data_dir,
                workers=workers,
                model=model,
                gateway_port=0,
                router_port=0,
                batch_port=0,
            )
            return await _tell(options, console, output_dir)

    report = run(work())
    if as_json:
        output.out(to_json(asdict(report)), highlight=False)


async def _tell(options: PlatformOptions, console: Console, output_dir: Path) -> DemoReport:
    began_s = time.monotonic()
    async with running_platform(options, lambda line: notes.print(line, style="dim")) as platform:
        start_s = time.monotonic() - began_s
        notes.print(f"everything is ready after {duration(start_s)}", style="dim")
        addresses = platform.addresses
        async with (
            AsyncClient(addresses.router) as client,
            AsyncBatchClient(addresses.batch) as batches,
        ):
            story = Story(client, batches, console, output_dir)
            model = await story.model()
            runs = await story.stream_twice()
            batch = await story.run_batch(model)
        total_s = time.monotonic() - began_s
        report = DemoReport(model, options.workers, start_s, runs, batch, total_s)
        console.print(summary_table(report))
        notes.print("stopping", style="dim")
    console.print(f"done in {duration(time.monotonic() - began_s)}", style="green")
    return report


@contextmanager
def _scratch() -> Iterator[Path]:
    """A data folder that stays only if something failed, for its logs."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
    failed = False
    try:
        yield folder
    except Exception:
        failed = True
        raise
    finally:
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)
