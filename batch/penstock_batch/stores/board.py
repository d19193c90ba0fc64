"""The notice board in Redis: who holds which step, how far running shards are, what changed.

Everything here can be lost and is rebuilt: leases run out or are taken again, counters are
reported again. Nothing that is lost here loses a line.
"""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from penstock_batch.state.steps import Leases, Step
from penstock_core.errors import Unavailable
from penstock_core.redis_client import connect
from penstock_core.rpc.cancellation import heeded_cancellation

if TYPE_CHECKING:
    from types import TracebackType

_TIMEOUT_S = 5.0
_KEEP_S = 24 * 3600
_QUEUED = "queued"
_RUNNING = "run:"

# Take a step unless somebody runs it.
_BEGIN = """
local holder = redis.call('GET', KEYS[1])
if holder and string.sub(holder, 1, 4) == 'run:' and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# Replace the lease by a wait (or nothing), if it is still ours.
_END = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], 'queued', 'PX', ARGV[2])
else
  redis.call('DEL', KEYS[1])
end
return 1
"""
# Keep the furthest report of a shard: a second run starts from nothing, readers must not see that.
_REPORT = """
local old = redis.call('HGET', KEYS[1], ARGV[1])
local done = old and (tonumber(string.match(old, '^%d+')) + tonumber(string.match(old, '%d+$')))
if not done or done < ARGV[2] + ARGV[3] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ':' .. ARGV[3])
  redis.call('INCR', KEYS[2])
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """Lines done within shards, (completed, failed) by shard, and a number that moves on change."""

    version: str = ""
    shards: Mapping[int, tuple[int, int]] = field(default_factory=dict)


class Board:
    """Leases and counters. Every method raises Unavailable if Redis does not answer."""

    def __init__(self, url: str, prefix: str) -> None:
        self._redis = connect(url, _TIMEOUT_S)
        self._prefix = f"{prefix}:batch:"

    async def __aenter__(self) -> "Board":
        """Nothing is opened before the first call."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: "TracebackType | None",
    ) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def leases(self, batch_id: str, steps: Sequence[Step]) -> Leases:
        """Which of the steps are held."""
        async with _translated():
            values = await self._redis.mget([self._lease(batch_id, step) for step in steps])
        return Leases(
            {
                step.name: str(value).startswith(_RUNNING)
                for step, value in zip(steps, values, strict=True)
                if value is not None
            }
        )

    async def claim(self, batch_id: str, step: Step, for_s: float) -> bool:
        """Mark a step as enqueued unless somebody holds it; whether this caller may enqueue it."""
        async with _translated():
            return bool(
                await self._redis.set(
                    self._lease(batch_id, step), _QUEUED, nx=True, px=_millis(for_s)
                )
            )

    async def begin(self, batch_id: str, step: Step, owner: str, for_s: float) -> bool:
        """Take or renew a step for some seconds, unless another owner runs it."""
        key = self._lease(batch_id, step)
        return bool(await self._eval(_BEGIN, [key], f"{_RUNNING}{owner}", _millis(for_s)))

    async def end(self, batch_id: str, step: Step, owner: str, wait_s: float = 0.0) -> None:
        """Let go of a step; nobody is to take it for ``wait_s`` seconds."""
        key = self._lease(batch_id, step)
        await self._eval(_END, [key], f"{_RUNNING}{owner}", _millis(wait_s))

    async def count_failure(self, batch_id: str, step: Step) -> int:
        """How often a step has failed by now."""
        key = f"{self._prefix}failures:{batch_id}:{step.name}"
        async with _translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.incr(key)
            pipe.expire(key, _KEEP_S)
            return int((await pipe.execute())[0])

    async def report(self, batch_id: str, shard: int, completed: int, failed: int) -> None:
        """Say how many lines of a running shard are done."""
        keys = [f"{self._prefix}progress:{batch_id}", self._version(batch_id)]
        await self._eval(_REPORT, keys, shard, completed, failed, _KEEP_S)

    async def progress(self, batch_id: str) -> Progress:
        """How far the running shards are."""
        async with _translated(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(f"{self._prefix}progress:{batch_id}")
            pipe.get(self._version(batch_id))
            fields, version = await pipe.execute()
        shards = {}
        for shard, value in fields.items():
            completed, _, failed = value.partition(":")
            shards[int(shard)] = (int(completed), int(failed))
        return Progress(version or "", shards)

    async def touch(self, batch_id: str) -> None:
        """Tell watchers that the batch's facts changed."""
        key = self._version(batch_id)
        async with _translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.incr(key)
            pipe.expire(key, _KEEP_S)
            await pipe.execute()

    async def lengths(self, keys: Sequence[str]) -> int:
        """Items in lists, summed."""
        async with _translated(), self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.llen(key)
            return sum(await pipe.execute())

    async def _eval(self, script: str, keys: list[str], *args: object) -> Any:
        async with _translated():
            answer = self._redis.eval(script, len(keys), *keys, *(str(arg) for arg in args))
            return await answer if isinstance(answer, Awaitable) else answer

    def _lease(self, batch_id: str, step: Step) -> str:
        return f"{self._prefix}lease:{batch_id}:{step.name}"

    def _version(self, batch_id: str) -> str:
        return f"{self._prefix}version:{batch_id}"


def _millis(seconds: float) -> int:
    return round(seconds * 1000)


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        with heeded_cancellation():
            yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis does not answer: {error}") from error
