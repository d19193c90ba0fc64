"""``penstock batch ...``: offline batches."""

import json
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from penstock.batch.v1 import batch_pb2
from penstock_cli.execution import notes, output, run
from penstock_cli.failures import CommandFailed
from penstock_cli.options import DEFAULT_BATCH_TARGET, ApiKey, BatchTarget, Json, own_tls
from penstock_cli.views.batches import (
    ENDED,
    BatchProgress,
    batch_lines,
    batches_table,
    status_name,
)
from penstock_cli.views.documents import messages_to_json, to_dict, to_json
from penstock_client import AsyncBatchClient

app = typer.Typer(help="Run offline batches: JSONL in, JSONL out.", no_args_is_help=True)

BatchId = Annotated[str, typer.Argument(metavar="BATCH_ID")]


def _client(target: str, api_key: str) -> AsyncBatchClient:
    return AsyncBatchClient(target, api_key=api_key or None, tls=own_tls())


@app.command(epilog="Example: penstock batch submit requests.jsonl --watch")
def submit(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="One request a line.")],
    target: BatchTarget = DEFAULT_BATCH_TARGET,
    api_key: ApiKey = "",
    endpoint: Annotated[str, typer.Option(help="Default: the first line's url.")] = "",
    window_h: Annotated[float, typer.Option("--window", help="Hours until it expires.")] = 24.0,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it ended.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a file and start a batch over it."""

    async def work() -> None:
        wanted = endpoint or first_url(path)
        async with _client(target, api_key) as client:
            uploaded = await client.upload(path)
            batch = await client.create(
                uploaded.id, wanted, completion_window_s=int(window_h * 3600)
            )
            if watch:
                batch = await followed(client, batch.id, show=not as_json)
        _show(batch, as_json=as_json)

    run(work())


@app.command(epilog="Example: penstock batch status batch_0123456789abcdef")
def status(
    batch_id: BatchId,
    target: BatchTarget = DEFAULT_BATCH_TARGET,
    api_key: ApiKey = "",
    *,
    as_json: Json = False,
) -> None:
    """Show where a batch is."""

    async def work() -> None:
        async with _client(target, api_key) as client:
            _show(await client.get(batch_id), as_json=as_json)

    run(work())


@app.command(epilog="Example: penstock batch watch batch_0123456789abcdef")
def watch(
    batch_id: BatchId,
    target: BatchTarget = DEFAULT_BATCH_TARGET,
    api_key: ApiKey = "",
    *,
    as_json: Json = False,
) -> None:
    """Follow a batch until it ended."""

    async def work() -> None:
        async with _client(target, api_key) as client:
            _show(await followed(client, batch_id, show=not as_json), as_json=as_json)

    run(work())


@app.command(epilog="Example: penstock batch cancel batch_0123456789abcdef")
def cancel(
    batch_id: BatchId,
    target: BatchTarget = DEFAULT_BATCH_TARGET,
    api_key: ApiKey = "",
    *,
    as_json: Json = False,
) -> None:
    """Cancel a batch; what is done stays."""

    async def work() -> None:
        async with _client(target, api_key) as client:
            _show(await client.cancel(batch_id), as_json=as_json)

    run(work())


@app.command(epilog="Example: penstock batch results batch_0123456789abcdef -o answers.jsonl")
def results(
    batch_id: BatchId,
    target: BatchTarget = DEFAULT_BATCH_TARGET,
    api_key: ApiKey = "",
    to: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; default: standard output.")
    ] = None,
    *,
    errors: Annotated[bool, typer.Option("--errors", help="The failed lines instead.")] = False,
) -> None:
    """Write a batch's output file (or its error file)."""

    async def work() -> None:
        async with _client(target, api_key) as client:
            batch = await client.get(batch_id)
            file_id = batch.error_file_id if errors else batch.output_file_id
            if not file_id:
                kind = "error" if errors else "output"
                raise CommandFailed(f"{batch_id} is {status_name(batch)}: no {kind} file")
            if to is None:
                async with aclosing(client.download(file_id)) as pieces:
                    async for piece in pieces:
                        typer.get_binary_stream("stdout").write(piece)
                return
            await saved(client, file_id, to)
        notes.print(f"written to {to}", style="dim", markup=False)

    run(work())


@app.command(name="list", epilog="Example: penstock batch list --limit 5")
def list_(
    target: BatchTarget = DEFAULT_BATCH_TARGET,
    api_key: ApiKey = "",
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 20,
    after: Annotated[str, typer.Option(help="Continue after this batch.")] = "",
    *,
    as_json: Json = False,
) -> None:
    """List batches, newest first."""

    async def work() -> None:
        async with _client(target, api_key) as client:
            page = await client.list(after=after, limit=limit)
        if as_json:
            output.out(messages_to_json(page.batches), highlight=False)
        else:
            output.print(batches_table(page.batches))
            if page.has_more:
                notes.print(f"more: --after {page.batches[-1].id}", style="dim")

    run(work())


def first_url(path: Path) -> str:
    """The endpoint that a file's first line asks for.

    Raises:
        CommandFailed: the line does not say; the file may still be a valid one.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    try:
        url = json.loads(first)["url"]
    except (ValueError, KeyError, TypeError):
        url = None
    if not isinstance(url, str):
        raise CommandFailed(f"the first line of {path} names no url; say which with --endpoint")
    return url


async def followed(client: AsyncBatchClient, batch_id: str, *, show: bool) -> batch_pb2.Batch:
    """Wait until a batch ended, with a progress bar on standard error if ``show``."""
    batch = await client.get(batch_id)
    progress = BatchProgress(notes) if show else nullcontext()
    with progress as bar:
        async with aclosing(client.watch(batch_id)) as changes:
            async for change in changes:
                batch = change
                if bar is not None:
                    bar.show(batch)
    return batch


async def saved(client: AsyncBatchClient, file_id: str, path: Path) -> None:
    """Write a stored file to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        async with aclosing(client.download(file_id)) as pieces:
            async for piece in pieces:
                file.write(piece)


def _show(batch: batch_pb2.Batch, *, as_json: bool) -> None:
    if as_json:
        output.out(to_json(to_dict(batch)), highlight=False)
    else:
        output.print(batch_lines(batch))
    if batch.status in ENDED and batch.status != batch_pb2.BATCH_STATUS_COMPLETED and not as_json:
        notes.print(f"the batch is {status_name(batch)}", style="yellow")
