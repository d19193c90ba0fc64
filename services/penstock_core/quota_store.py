"""The accounts of all routers together, in the registry's Redis: one script call for each request.

An account is a hash (``requests`` and ``tokens`` left, ``at`` when, by Redis' clock, and the limits)
and a sorted set of the requests that are open, each with the time until which it counts unless
somebody keeps it up: what a lost router had open is forgotten with it.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from penstock_core.cancellation import heeded_cancellation
from penstock_core.errors import Unavailable
from penstock_core.quotas import Claim, Verdict

KEPT_S = 20.0
_TIMEOUT_S = 0.25
_CONNECTIONS = 16
_UNLIMITED = -1

# Levels as of now. A limit of less than 0 is none.
_LEVELS = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local was = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens', 'rpm', 'tpm')
local function level(left, limit)
  if limit < 0 then return nil end
  if not left or not was[1] then return limit end
  return math.min(left + math.max(now - was[1], 0) * limit / 60000, limit)
end
local function kept(requests, tokens, rpm, tpm)
  local full_ms = 0
  local function keep(name, left, limit)
    if not left then return end
    redis.call('HSET', KEYS[1], name, string.format('%.17g', left))
    if limit > 0 then full_ms = math.max(full_ms, (limit - left) * 60000 / limit) end
  end
  redis.call('HSET', KEYS[1], 'at', now, 'rpm', rpm, 'tpm', tpm)
  keep('requests', requests, rpm)
  keep('tokens', tokens, tpm)
  redis.call('PEXPIRE', KEYS[1], math.ceil(math.min(full_ms, 86400000)) + 60000)
end
"""

_CLAIM = (
    _LEVELS
    + """
local id, asked, rpm, tpm, most, ttl = ARGV[1], ARGV[2], ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0, ARGV[6] + 0
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local requests, tokens = level(was[2], rpm), level(was[3], tpm)
local known = redis.call('ZSCORE', KEYS[2], id)
local refused = ''
if not known then
  if most >= 0 and redis.call('ZCARD', KEYS[2]) >= most then refused = 'max_concurrency'
  elseif requests and requests < 1 then refused = 'requests_per_minute'
  elseif tokens and tokens <= 0 then refused = 'tokens_per_minute'
  else
    if requests then requests = requests - 1 end
    if tokens then tokens = tokens - asked end
  end
end
if refused == '' then
  redis.call('ZADD', KEYS[2], now + ttl, id)
  redis.call('PEXPIRE', KEYS[2], ttl)
end
kept(requests, tokens, rpm, tpm)
local function told(left) return left and string.format('%.17g', left) or '' end
return {refused, known and 1 or 0, told(requests), told(tokens)}
"""
)

_SETTLE = (
    _LEVELS
    + """
local spent, ttl, ended = ARGV[1] + 0, ARGV[2] + 0, ARGV[3] + 0
for i = 4, 3 + ended do redis.call('ZREM', KEYS[2], ARGV[i]) end
for i = 4 + ended, #ARGV do redis.call('ZADD', KEYS[2], now + ttl, ARGV[i]) end
if #ARGV > 3 + ended then redis.call('PEXPIRE', KEYS[2], ttl) end
if spent ~= 0 and was[1] then
  local rpm, tpm = was[4] + 0, was[5] + 0
  local tokens = level(was[3], tpm)
  kept(level(was[2], rpm), tokens and tokens - spent, rpm, tpm)
end
return 0
"""
)


@dataclass(frozen=True, slots=True)
class Settlement:
    """News of one account: tokens that were used, requests that are over, requests that go on."""

    account: str
    tokens: int
    ended: Sequence[str]
    kept: Sequence[str]


class QuotaStore:
    """Accounts under ``PREFIX:quota:ACCOUNT``."""

    def __init__(self, url: str, prefix: str = "penstock", kept_s: float = KEPT_S) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            decode_responses=True,
            driver_info=None,
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._claim = self._redis.register_script(_CLAIM)
        self._settle = self._redis.register_script(_SETTLE)
        self._prefix = prefix
        self._kept_ms = int(kept_s * 1000)

    async def claim(self, claim: Claim) -> Verdict:
        """Let a request in, or not. Raises Unavailable if Redis does not answer in time."""
        limits = claim.limits
        told = (limits.requests_per_minute, limits.tokens_per_minute, limits.max_concurrency)
        bounds = [_UNLIMITED if limit is None else limit for limit in told]
        arguments: list[str | int] = [claim.request_id, claim.tokens, *bounds, self._kept_ms]
        with _translated():
            async with asyncio.timeout(_TIMEOUT_S):  # connecting and waiting for a place included
                answer = await self._claim(keys=self._keys(claim.account), args=arguments)
        refused, known, requests, tokens = answer
        return Verdict(refused, bool(known), _number(requests), _number(tokens))

    async def settle(self, news: Sequence[Settlement]) -> None:
        """Take the news of accounts. Raises Unavailable."""
        with _translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for one in news:
                    head: list[str | int] = [one.tokens, self._kept_ms, len(one.ended)]
                    arguments = [*head, *one.ended, *one.kept]
                    await self._settle(keys=self._keys(one.account), args=arguments, client=pipe)
                await pipe.execute()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _keys(self, account: str) -> list[str]:
        # In braces: a Redis cluster keeps both in one place.
        name = f"{self._prefix}:quota:{{{account}}}"
        return [name, f"{name}:open"]


def _number(text: str) -> float | None:
    return float(text) if text else None


@contextmanager
def _translated() -> Iterator[None]:
    try:
        with heeded_cancellation():
            yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"the limits' store does not answer: {type(error).__name__}") from error
