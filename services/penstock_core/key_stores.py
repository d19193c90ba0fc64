"""Where API keys lie, and how ``penstock keys`` changes them: files, or a hash in Redis.

Readers ask for a version first, which is cheap, and for the entries only when it has moved.
"""

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from penstock_core.errors import Unavailable
from penstock_core.key_entries import KeyEntry, parse_key, parse_keys, render_keys
from penstock_core.tls import stamps

_TIMEOUT_S = 2.0
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


class RedisKeys:
    """Keys in the Redis hash ``PREFIX:keys`` by id; ``PREFIX:keys:version`` counts the changes."""

    def __init__(self, url: str, prefix: str = "penstock") -> None:
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            decode_responses=True,
            driver_info=None,
        )
        self._keys, self._version = f"{prefix}:keys", f"{prefix}:keys:version"

    async def version(self) -> str:
        """See ``KeyStore``."""
        async with _told():
            return str(await self._redis.get(self._version) or "")

    async def entries(self) -> list[KeyEntry]:
        """See ``KeyStore``."""
        async with _told():
            answer = self._redis.hgetall(self._keys)
            stored = await answer if not isinstance(answer, dict) else answer
        return [parse_key(_document(text)) for _, text in sorted(stored.items())]

    async def change(self, change: Change) -> None:
        """See ``KeyStore``; of two that change it at once one fails."""
        async with _told(), self._redis.pipeline(transaction=True) as pipe:
            await pipe.watch(self._keys)
            now = await self.entries()
            wanted = change(now)
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.delete(self._keys)
            for entry in wanted:
                pipe.hset(self._keys, entry.id, json.dumps(entry.to_json()))
            pipe.incr(self._version)
            await pipe.execute()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


def open_store(where: str) -> KeyStore:
    """The store at a Redis URL, or in files by comma. Raises ValueError for a malformed URL."""
    if where.startswith(("redis://", "rediss://", "unix://")):
        return RedisKeys(where)
    return KeyFiles([Path(part.strip()) for part in where.split(",") if part.strip()])


def _entries_of(path: Path) -> list[KeyEntry]:
    try:
        return parse_keys(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unavailable(f"a key file cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no key file: {error}") from error


def _document(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a stored key is no JSON: {error}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, _PRIVATE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@asynccontextmanager
async def _told() -> AsyncIterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"the key store does not answer: {type(error).__name__}") from error
