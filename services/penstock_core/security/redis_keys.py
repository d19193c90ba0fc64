"""API keys in a hash in Redis."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import RedisError

from penstock_core.errors import Unavailable
from penstock_core.redis_client import connect
from penstock_core.security.key_entries import KeyEntry, parse_key
from penstock_core.security.key_stores import Change

_TIMEOUT_S = 2.0


class RedisKeys:
    """Keys in the Redis hash ``PREFIX:keys`` by id; ``PREFIX:keys:version`` counts the changes."""

    def __init__(self, url: str, prefix: str = "penstock") -> None:
        self._redis = connect(url, _TIMEOUT_S)
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


def _document(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a stored key is no JSON: {error}") from error


@asynccontextmanager
async def _told() -> AsyncIterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"the key store does not answer: {type(error).__name__}") from error
