"""``penstock doctor``: checks a deployment and says what to fix."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from penstock_cli.doctor.checks import examine, worst
from penstock_cli.doctor.facts import Level
from penstock_cli.doctor.sites import Site, of_data_dir
from penstock_cli.doctor.survey import survey
from penstock_cli.execution import output, run
from penstock_cli.failures import CommandFailed
from penstock_cli.options import (
    DEFAULT_BATCH_TARGET,
    DEFAULT_TARGET,
    GATEWAY_PORT,
    ApiKey,
    Json,
    own_tls,
)
from penstock_cli.views.doctor import findings_document, findings_table
from penstock_cli.views.documents import to_json

EPILOG = "Example: penstock doctor --target r1:50051,r2:50051 --redis-url redis://redis:6379/0"

Targets = Annotated[
    str,
    typer.Option("--target", envvar="PENSTOCK_TARGET", help="Routers, host:port with commas."),
]
Batch = Annotated[
    str,
    typer.Option(
        "--batch-target", envvar="PENSTOCK_TARGET_BATCH", help="Batch service; empty: none."
    ),
]
Gateway = Annotated[
    str,
    typer.Option(
        envvar="PENSTOCK_TARGET_GATEWAY", help="[https://]host:port of the gateway; empty: none."
    ),
]
RedisUrl = Annotated[
    str, typer.Option(envvar="PENSTOCK_DOCTOR_REDIS_URL", help="Redis' URL; empty: not looked at.")
]
RedisUrlFile = Annotated[
    Path | None,
    typer.Option(help="File that holds Redis' URL, where it holds a password.", dir_okay=False),
]
Metrics = Annotated[
    str,
    typer.Option(help="Scrape endpoints of Celery workers: name=[https://]host:port with commas."),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Check the `penstock up` of this data folder instead.")
]
LeaseSecret = Annotated[
    str,
    typer.Option(
        envvar="PENSTOCK_DOCTOR_LEASE_SECRET",
        help="What routers and workers share; needed to compare their indexes.",
    ),
]
LeaseSecretFile = Annotated[Path | None, typer.Option(help="File that holds it.", dir_okay=False)]


def doctor(
    target: Targets = DEFAULT_TARGET,
    batch_target: Batch = DEFAULT_BATCH_TARGET,
    gateway: Gateway = f"127.0.0.1:{GATEWAY_PORT}",
    redis_url: RedisUrl = "",
    redis_url_file: RedisUrlFile = None,
    metrics: Metrics = "",
    keys_file: Annotated[str, typer.Option(help="The key file of routers and batch.")] = "",
    data_dir: DataDir = None,
    api_key: ApiKey = "",
    lease_secret: LeaseSecret = "",
    lease_secret_file: LeaseSecretFile = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="For each answer, seconds.")] = 5.0,
    *,
    as_json: Json = False,
) -> None:
    """Check a deployment: exit status 1 if something needs fixing.

    Asks every process whether it is there and ready, compares versions and clocks, Redis' settings,
    the registry with what is there, each router's index with its workers' caches, and tries a lease
    of each router on each worker: one token each.
    """

    async def work() -> Level:
        if data_dir is not None:
            site = of_data_dir(data_dir, keys_file=keys_file, api_key=api_key, timeout_s=timeout_s)
        else:
            site = Site(
                routers=tuple(_parts(target)),
                batch=batch_target,
                gateway=gateway,
                redis_url=_told(redis_url, redis_url_file),
                metrics=tuple(_named(part) for part in _parts(metrics)),
                keys_file=keys_file,
                api_key=api_key,
                timeout_s=timeout_s,
            )
        site = replace(site, lease_secret=_told(lease_secret, lease_secret_file), tls=own_tls())
        findings = examine(await survey(site))
        if as_json:
            output.out(to_json(findings_document(findings)), highlight=False)
        else:
            output.print(findings_table(findings))
        return worst(findings)

    if run(work()) is Level.PROBLEM:
        raise typer.Exit(1)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _named(part: str) -> tuple[str, str]:
    name, _, address = part.rpartition("=")
    return name or address, address


def _told(value: str, file: Path | None) -> str:
    if file is None:
        return value
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CommandFailed(f"cannot read {file}: {error.strerror}") from error
