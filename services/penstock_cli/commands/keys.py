"""``penstock keys``: who may call, in a key file or in Redis; servers notice within a second."""

import json
import time
from dataclasses import replace
from typing import Annotated

import typer
from rich.table import Table

from penstock_cli.execution import notes, output, run
from penstock_cli.failures import CommandFailed
from penstock_cli.options import Json
from penstock_core.ids import new_id
from penstock_core.security.auth import Limits, digest, new_key
from penstock_core.security.key_entries import KeyEntry, parse_key
from penstock_core.security.key_stores import Change, KeyFiles, open_store

app = typer.Typer(no_args_is_help=True, help="API keys: make, list, rotate and revoke them.")

Store = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="PENSTOCK_KEYS",
        help="Key file, or Redis URL; what KEYS_FILE or KEYS_URL of the servers names.",
    ),
]
KeyId = Annotated[str, typer.Argument(help="Id of the key, as `penstock keys list` shows it.")]
_OVERLAP_S = 24 * 3600


@app.command(epilog="Example: penstock keys create acme --store keys.json --rpm 600 --tpm 100000")
def create(
    tenant: Annotated[str, typer.Argument(help="In whose name its holder acts.")],
    store: Store,
    name: Annotated[str, typer.Option(help="What it is for; its rotations share it.")] = "",
    rpm: Annotated[int | None, typer.Option(min=0, help="Requests a minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=0, help="Tokens a minute, in and out.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may use; none: all.")] = None,
    days: Annotated[int, typer.Option(min=0, help="Days until it ends; 0: never.")] = 0,
    service: Annotated[
        bool, typer.Option("--service", help="Part of the platform: may act for every tenant.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: only its digest is kept."""
    limits = Limits(rpm, tpm, concurrency, frozenset(model or ()))
    now = int(time.time())
    ends = now + days * 24 * 3600 if days else 0
    key = new_key()
    entry = KeyEntry(digest(key), tenant, new_id("key"), name, service, now, ends, limits)
    _check(entry)
    run(_change(store, lambda entries: [*entries, entry], may_create=True))
    _tell(key, entry, as_json=as_json)


@app.command("list", epilog="Example: penstock keys list --store keys.json")
def list_keys(store: Store, *, as_json: Json = False) -> None:
    """Show the keys with their limits; never the keys themselves."""
    entries = run(_entries(store))
    if as_json:
        told = [{k: v for k, v in e.to_json().items() if k != "sha256"} for e in entries]
        output.out(json.dumps(told, indent=2), highlight=False)
        return
    table = Table("id", "tenant", "name", "limits", "models", "ends", box=None)
    for entry in entries:
        table.add_row(entry.id, entry.tenant, _kind(entry), _limits(entry.limits),
                      ", ".join(sorted(entry.limits.models)) or "all", _end(entry))  # fmt: skip
    output.print(table)


@app.command(epilog="Example: penstock keys revoke key_1f0c --store keys.json")
def revoke(key_id: KeyId, store: Store) -> None:
    """End a key at once; calls that run go on to their end."""

    def without(entries: list[KeyEntry]) -> list[KeyEntry]:
        _find(entries, key_id)
        return [entry for entry in entries if entry.id != key_id]

    run(_change(store, without))
    notes.print(f"{key_id} is revoked", markup=False)


@app.command(epilog="Example: penstock keys rotate key_1f0c --store keys.json --overlap-s 3600")
def rotate(
    key_id: KeyId,
    store: Store,
    overlap_s: Annotated[
        int, typer.Option(min=0, help="Seconds that the old key goes on to count.")
    ] = _OVERLAP_S,
    *,
    as_json: Json = False,
) -> None:
    """Make a key that takes another's place and limits; for a while both count."""
    key, now = new_key(), int(time.time())
    made: list[KeyEntry] = []

    def with_another(entries: list[KeyEntry]) -> list[KeyEntry]:
        old = _find(entries, key_id)
        ends = min(old.expires_unix_s or now + overlap_s, now + overlap_s)
        # Limits are counted by name: two keys of one rotation must not have them twice.
        name = old.name or old.id
        made[:] = [
            replace(old, sha256=digest(key), id=new_id("key"), name=name, created_unix_s=now)
        ]
        left = replace(old, name=name, expires_unix_s=ends)
        return [left if entry.id == key_id else entry for entry in entries] + made

    run(_change(store, with_another))
    _tell(key, made[0], as_json=as_json)


async def _entries(store: str) -> list[KeyEntry]:
    opened = open_store(store)
    try:
        return await opened.entries()
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    finally:
        await opened.close()


async def _change(store: str, change: Change, *, may_create: bool = False) -> None:
    opened = open_store(store)
    try:
        if not may_create and isinstance(opened, KeyFiles):
            await opened.version()
        await opened.change(change)
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    finally:
        await opened.close()


def _find(entries: list[KeyEntry], key_id: str) -> KeyEntry:
    found = next((entry for entry in entries if entry.id == key_id), None)
    if found is None:
        raise CommandFailed(f"there is no key {key_id}")
    return found


def _check(entry: KeyEntry) -> None:
    try:
        parse_key(entry.to_json())
    except ValueError as error:
        raise CommandFailed(str(error)) from error


def _tell(key: str, entry: KeyEntry, *, as_json: bool) -> None:
    if as_json:
        output.out(
            json.dumps({"id": entry.id, "key": key, "tenant": entry.tenant}), highlight=False
        )
        return
    notes.print(f"{entry.id} for {entry.tenant}; this is shown once:", markup=False)
    output.out(key, highlight=False)


def _kind(entry: KeyEntry) -> str:
    return f"{entry.name} (service)".strip() if entry.service else entry.name


def _limits(limits: Limits) -> str:
    told = (
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.max_concurrency, "at once"),
    )
    return ", ".join(f"{n} {what}" for n, what in told if n is not None) or "none"


def _end(entry: KeyEntry) -> str:
    if not entry.expires_unix_s:
        return "never"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.expires_unix_s))
