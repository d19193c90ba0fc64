"""What callers have used up of their limits: requests and tokens a minute, requests at once.

Pure; the clock comes in. Buckets refill evenly and hold a minute's worth. Tokens are known only
afterwards, so their bucket may go into debt, which later requests wait out. One process counts for
itself: with several routers each admits the whole limit.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from penstock_core.auth import Limits, Principal
from penstock_core.errors import Conflict, PermissionDenied, QuotaExceeded

_MINUTE_S = 60.0
_MAX_ACCOUNTS = 4096
# A request whose end nobody told of counts no longer than this.
_LOST_AFTER_S = 3600.0
_ELSEWHERE_S = 10.0
_BUSY_RETRY_S = 1.0
_MAX_OVER = 4096


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float

    def refilled(self, per_minute: int, now: float) -> float:
        self.level = min(self.level + (now - self.at) * per_minute / _MINUTE_S, float(per_minute))
        self.at = now
        return self.level


@dataclass(slots=True)
class _Account:
    requests: _Bucket | None = None
    tokens: _Bucket | None = None
    open: int = 0


@dataclass(slots=True)
class _Open:
    """A request that is under way; a leased one is out of our hands and ends by its worker's word."""

    account: str
    expires: float
    is_leased: bool
    tokens: int


class Quotas:
    """The accounts of all callers; the least recently used are forgotten."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._open: OrderedDict[str, _Open] = OrderedDict()
        # Whose tokens are told of only after the stream's end.
        self._over: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        """Requests that count as open."""
        return len(self._open)

    def check(self, principal: Principal) -> None:
        """Raise QuotaExceeded if the next request would be refused; costs nothing else."""
        if _bounds(principal.limits):
            now = self._clock()
            self._expire(now)
            self._check(self._account(_name(principal)), principal.limits, now)

    def admit(
        self, principal: Principal, request_id: str, tokens: int, lease_s: float | None = None
    ) -> None:
        """Let a request in and charge it; it is open until ``finish``.

        A request that is open already is another attempt at the same, and charged for nothing.

        Args:
            principal: who asks.
            request_id: its id.
            tokens: what is known to be used.
            lease_s: how long a request that we shall not see counts, unless its worker tells of it.

        Raises:
            QuotaExceeded: a limit is used up; ``subject`` names it.
            Conflict: somebody else's request of this id is open.
        """
        limits = principal.limits
        if not _bounds(limits):
            return
        now, name = self._clock(), _name(principal)
        self._expire(now)
        known = self._open.get(request_id)
        if known is not None:
            if known.account != name:
                raise Conflict(f"a request {request_id!r} is open already")
            return
        account = self._account(name)
        self._check(account, limits, now)
        if account.requests is not None:
            account.requests.level -= 1
        if account.tokens is not None:
            account.tokens.level -= tokens
        account.open += 1
        until = now + (_LOST_AFTER_S if lease_s is None else lease_s)
        self._open[request_id] = _Open(name, until, lease_s is not None, tokens)

    def used(self, request_id: str, tokens: int) -> None:
        """A request has taken more tokens; one that nobody counts is fine."""
        found = self._open.get(request_id)
        name = found.account if found else self._over.get(request_id, "")
        account = self._accounts.get(name)
        if account is not None and account.tokens is not None:
            account.tokens.level -= tokens

    def began(self, request_id: str, tokens: int) -> None:
        """A worker has it, so it is open however long it takes; its prompt may be longer than told."""
        found = self._open.get(request_id)
        if found is not None:
            found.expires = self._clock() + _LOST_AFTER_S
            self.used(request_id, max(tokens - found.tokens, 0))
            found.tokens = max(tokens, found.tokens)

    def ended(self, request_id: str, tokens: int, *, aborted: bool) -> None:
        """A worker is done with it. What was aborted may go on elsewhere, within seconds."""
        self.used(request_id, tokens)
        found = self._open.get(request_id)
        if found is None or not found.is_leased:
            return
        if aborted:
            found.expires = min(found.expires, self._clock() + _ELSEWHERE_S)
        else:
            self.finish(request_id)

    def finish(self, request_id: str) -> None:
        """A request is over; one that is unknown or was over is fine."""
        found = self._open.pop(request_id, None)
        if found is None:
            return
        if found.account in self._accounts:
            self._accounts[found.account].open -= 1
        self._over[request_id] = found.account
        while len(self._over) > _MAX_OVER:
            self._over.popitem(last=False)

    @contextmanager
    def held(self, principal: Principal, request_id: str, tokens: int) -> Iterator[None]:
        """A request that is over when the context ends. Raises as ``admit``."""
        self.admit(principal, request_id, tokens)
        try:
            yield
        finally:
            self.finish(request_id)

    def _check(self, account: _Account, limits: Limits, now: float) -> None:
        most = limits.max_concurrency
        if most is not None and account.open >= most:
            raise _refusal("max_concurrency", f"{most} requests at once", _BUSY_RETRY_S)
        account.requests = _settled(account.requests, limits.requests_per_minute, now)
        account.tokens = _settled(account.tokens, limits.tokens_per_minute, now)
        _must_have(account.requests, limits.requests_per_minute, "requests_per_minute", 1.0)
        _must_have(account.tokens, limits.tokens_per_minute, "tokens_per_minute", 0.0)

    def _account(self, name: str) -> _Account:
        account = self._accounts.setdefault(name, _Account())
        self._accounts.move_to_end(name)
        if len(self._accounts) > _MAX_ACCOUNTS:
            idle = (n for n, a in self._accounts.items() if not a.open and n != name)
            self._accounts.pop(next(idle, ""), None)
        return account

    def _expire(self, now: float) -> None:
        for request_id in [i for i, found in self._open.items() if found.expires <= now]:
            self.finish(request_id)


def check_model(principal: Principal, *names: str) -> None:
    """Raise PermissionDenied unless the key allows what is asked for under one of its names."""
    allowed = principal.limits.models
    if allowed and not allowed & set(names):
        raise PermissionDenied(f"this key may not use {names[0]!r}")


def _name(principal: Principal) -> str:
    return principal.account or principal.tenant


def _bounds(limits: Limits) -> bool:
    told = (limits.requests_per_minute, limits.tokens_per_minute, limits.max_concurrency)
    return any(limit is not None for limit in told)


def _settled(bucket: _Bucket | None, per_minute: int | None, now: float) -> _Bucket | None:
    if per_minute is None:
        return None
    found = bucket or _Bucket(float(per_minute), now)
    found.refilled(per_minute, now)
    return found


def _must_have(bucket: _Bucket | None, per_minute: int | None, subject: str, least: float) -> None:
    if bucket is None or per_minute is None:
        return
    # With nothing to have, nothing is enough.
    if per_minute > 0 and (bucket.level >= least if least else bucket.level > 0):
        return
    missing = max(least, 1.0) - bucket.level
    wait_s = missing * _MINUTE_S / per_minute if per_minute else _MINUTE_S
    raise _refusal(subject, f"{per_minute} {subject.replace('_', ' ')}", wait_s)


def _refusal(subject: str, what: str, wait_s: float) -> QuotaExceeded:
    message = f"this key allows {what}"
    return QuotaExceeded(message, subject=subject, retry_after_s=wait_s)
