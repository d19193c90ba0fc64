"""Where API keys lie, and how ``penstock keys`` changes them: files, or Redis (``redis_keys``).

Readers ask for a version first, which is cheap, and for the entries only when it has moved.
"""

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from penstock_core.errors import Unavailable
from penstock_core.security.key_entries import KeyEntry, parse_keys, render_keys
from penstock_core.security.tls import stamps

_PRIVATE = 0o600

Change = Callable[[list[KeyEntry]], list[KeyEntry]]


class KeyStore(Protocol):
    """Keys that can be read and changed."""

    async def version(self) -> str:
        """Differs after each change. Raises Unavailable if it cannot be told."""
        ...

    async def entries(self) -> list[KeyEntry]:
        """All keys.

        Raises:
            Unavailable: the store does not answer.
            ValueError: what it holds are no keys.
        """
        ...

    async def change(self, change: Change) -> None:
        """Replace all entries by what ``change`` makes of them. Raises as ``entries``."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class KeyFiles:
    """One or several key files; changes go to the first."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)

    async def version(self) -> str:
        """See ``KeyStore``."""
        try:
            return str(await asyncio.to_thread(stamps, self._paths))
        except OSError as error:
            raise Unavailable(f"a key file cannot be read: {error}") from error

    async def entries(self) -> list[KeyEntry]:
        """See ``KeyStore``."""
        return await asyncio.to_thread(self._read)

    async def change(self, change: Change) -> None:
        """See ``KeyStore``; others that change it wait, readers never see half a file."""
        await asyncio.to_thread(self._change, change)

    async def close(self) -> None:
        """Nothing is held."""

    def _read(self) -> list[KeyEntry]:
        return [entry for path in self._paths for entry in _entries_of(path)]

    def _change(self, change: Change) -> None:
        path = self._paths[0]
        with _locked(path):
            entries = change(_entries_of(path) if path.exists() else [])
            draft = path.with_name(f".{path.name}.draft")
            draft.touch(mode=_PRIVATE)
            draft.write_text(render_keys(entries), encoding="utf-8")
            draft.replace(path)


def open_store(where: str) -> KeyStore:
    """The store at a Redis URL, or in files by comma. Raises ValueError for a malformed URL."""
    if where.startswith(("redis://", "rediss://", "unix://")):
        # Loaded only where it is used: a process without keys in Redis needs no client.
        from penstock_core.security.redis_keys import RedisKeys  # noqa: PLC0415

        return RedisKeys(where)
    return KeyFiles([Path(part.strip()) for part in where.split(",") if part.strip()])


def _entries_of(path: Path) -> list[KeyEntry]:
    try:
        return parse_keys(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unavailable(f"a key file cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no key file: {error}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, _PRIVATE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
