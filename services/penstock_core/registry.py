"""Where workers announce themselves and routers find them: Redis keys with a TTL, or a fixed list.

The registry only says who might be there. Whether a worker is alive and what it holds a router
learns from the worker itself (``WatchState``).
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from redis.exceptions import RedisError

from penstock_core.errors import Unavailable
from penstock_core.redis_client import connect
from penstock_core.rpc.cancellation import heeded_cancellation

TTL_S = 10.0
RENEW_S = 3.0
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """One announced worker. ``worker_id`` is empty where only the address is known."""

    endpoint: str
    worker_id: str = ""


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What a Redis server says of itself. ``unix_s`` is its clock."""

    version: str
    eviction: str
    has_aof: bool
    unix_s: float


class Registry(Protocol):
    """Finds workers."""

    async def workers(self) -> list[WorkerEntry]:
        """Everybody announced. Raises Unavailable if the registry does not answer."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class StaticRegistry:
    """A fixed list of addresses."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._entries = [WorkerEntry(endpoint) for endpoint in endpoints]

    async def workers(self) -> list[WorkerEntry]:
        """The list."""
        return list(self._entries)

    async def close(self) -> None:
        """Nothing to let go of."""


class RedisRegistry:
    """Workers under ``penstock:worker:ID`` with a TTL, indexed by the set ``penstock:workers``."""

    def __init__(self, url: str, prefix: str = "penstock") -> None:
        self._redis = connect(url, _TIMEOUT_S)
        self._index = f"{prefix}:workers"
        self._prefix = f"{prefix}:worker:"

    async def __aenter__(self) -> Self:
        """Nothing is opened before the first call."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def announce(self, entry: WorkerEntry) -> None:
        """Say that a worker is there, for ``TTL_S`` seconds. Raises Unavailable."""
        record = json.dumps({"endpoint": entry.endpoint, "worker_id": entry.worker_id})
        with _translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(self._prefix + entry.worker_id, record, px=int(TTL_S * 1000))
                pipe.sadd(self._index, entry.worker_id)
                await pipe.execute()

    async def withdraw(self, worker_id: str) -> None:
        """Say that a worker is gone. Raises Unavailable."""
        with _translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(self._prefix + worker_id)
                pipe.srem(self._index, worker_id)
                await pipe.execute()

    async def workers(self) -> list[WorkerEntry]:
        """Everybody whose announcement has not run out. Raises Unavailable."""
        with _translated():
            ids = sorted(str(member) for member in await self._redis.smembers(self._index))
            if not ids:
                return []
            records = await self._redis.mget([self._prefix + worker_id for worker_id in ids])
            expired = [i for i, record in zip(ids, records, strict=True) if record is None]
            if expired:
                await self._redis.srem(self._index, *expired)
        return [WorkerEntry(**json.loads(record)) for record in records if record is not None]

    async def server(self) -> RedisFacts:
        """The server behind it. Raises Unavailable."""
        with _translated():
            told = await self._redis.info()
            seconds, microseconds = await self._redis.time()
        return RedisFacts(
            version=str(told.get("redis_version", "")),
            eviction=str(told.get("maxmemory_policy", "")),
            has_aof=bool(told.get("aof_enabled")),
            unix_s=int(seconds) + int(microseconds) / 1e6,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


def open_registry(redis_url: str, endpoints: Sequence[str]) -> Registry:
    """The fixed list if there is one, else Redis."""
    return StaticRegistry(endpoints) if endpoints else RedisRegistry(redis_url)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        with heeded_cancellation():
            yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"the registry does not answer: {error}") from error
