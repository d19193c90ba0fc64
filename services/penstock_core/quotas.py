"""What callers have used up of their limits: requests and tokens a minute, requests at once.

Pure; the clock comes in. Buckets refill evenly and hold a minute's worth. Tokens are known only
afterwards, so their bucket may go into debt, which later requests wait out. This is one process's
own count; ``shared_quotas`` keeps it in step with the counts of others.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

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
    # Not where another process has it open as well, and tells of its tokens.
    pays: bool = True


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that asks to be let in, and what its key allows."""

    account: str
    request_id: str
    tokens: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all processes together say to a claim.

    Attributes:
        refused: the limit that is used up; empty if it is let in.
        is_known: whether it is open already, by another process's word.
        requests: what is left for this minute; None is unlimited.
        tokens: the same of tokens.
    """

    refused: str = ""
    is_known: bool = False
    requests: float | None = None
    tokens: float | None = None


@dataclass(slots=True)
class Tellings:
    """What others have not been told yet: tokens by account, and requests that are over."""

    tokens: dict[str, int] = field(default_factory=dict)
    ended: dict[str, list[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.tokens or self.ended)

    def spent(self, account: str, tokens: int) -> None:
        """Note tokens."""
        self.tokens[account] = self.tokens.get(account, 0) + tokens

    def over(self, account: str, request_id: str) -> None:
        """Note an end."""
        self.ended.setdefault(account, []).append(request_id)


class Quotas:
    """The accounts of all callers; the least recently used are forgotten.

    With ``tells`` it keeps what others must hear of until ``tell``.
    """

    def __init__(self, clock: Callable[[], float], *, tells: bool = False) -> None:
        self._clock = clock
        self._tells = tells
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._open: OrderedDict[str, _Open] = OrderedDict()
        # Whose tokens are told of only after the stream's end.
        self._over: OrderedDict[str, str] = OrderedDict()
        self._tellings = Tellings()

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
    ) -> Claim | None:
        """Let a request in and charge it; it is open until ``finish``.

        A request that is open already is another attempt at the same, and charged for nothing.

        Args:
            principal: who asks.
            request_id: its id.
            tokens: what is known to be used.
            lease_s: how long a request that we shall not see counts, unless its worker tells of it.

        Returns:
            What others must agree to; None for another attempt, or where nothing is limited.

        Raises:
            QuotaExceeded: a limit is used up; ``subject`` names it.
            Conflict: somebody else's request of this id is open.
        """
        limits = principal.limits
        if not _bounds(limits):
            return None
        now, name = self._clock(), _name(principal)
        self._expire(now)
        known = self._open.get(request_id)
        if known is not None:
            if known.account != name:
                raise Conflict(f"a request {request_id!r} is open already")
            return None
        account = self._account(name)
        self._check(account, limits, now)
        if account.requests is not None:
            account.requests.level -= 1
        if account.tokens is not None:
            account.tokens.level -= tokens
        account.open += 1
        until = now + (_LOST_AFTER_S if lease_s is None else lease_s)
        self._open[request_id] = _Open(name, until, lease_s is not None, tokens)
        return Claim(name, request_id, tokens, limits)

    def agree(self, claim: Claim, verdict: Verdict) -> None:
        """Take what all together say to a claim that was admitted here.

        Raises:
            QuotaExceeded: they refuse it; here it was never open then.
        """
        now, account = self._clock(), self._accounts.get(claim.account)
        found = self._open.get(claim.request_id)
        if found is not None:
            found.pays = not verdict.is_known
        if account is not None:
            untold = self._tellings.tokens.get(claim.account, 0)
            if verdict.requests is not None:
                account.requests = _Bucket(verdict.requests, now)
            if verdict.tokens is not None:
                account.tokens = _Bucket(verdict.tokens - untold, now)
        if not verdict.refused:
            return
        if self._open.pop(claim.request_id, None) is not None and account is not None:
            account.open -= 1
        raise _refused(verdict, claim.limits)

    def tell(self) -> Tellings:
        """What others must hear of, each thing once."""
        told, self._tellings = self._tellings, Tellings()
        return told

    def untell(self, told: Tellings) -> None:
        """They did not hear of it. Ends need no second telling: what nobody keeps up runs out."""
        for account, tokens in told.tokens.items():
            self._tellings.spent(account, tokens)

    def open_ids(self) -> dict[str, list[str]]:
        """Requests that are open, by account."""
        self._expire(self._clock())
        found: dict[str, list[str]] = {}
        for request_id, one in self._open.items():
            found.setdefault(one.account, []).append(request_id)
        return found

    def used(self, request_id: str, tokens: int) -> None:
        """A request has taken more tokens; one that nobody counts is fine."""
        found = self._open.get(request_id)
        if found is not None and not found.pays:
            return
        name = found.account if found else self._over.get(request_id, "")
        account = self._accounts.get(name)
        if account is not None and account.tokens is not None and tokens:
            account.tokens.level -= tokens
            if self._tells:
                self._tellings.spent(name, tokens)

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
        if self._tells:
            self._tellings.over(found.account, request_id)
        if found.pays:
            self._over[request_id] = found.account
        while len(self._over) > _MAX_OVER:
            self._over.popitem(last=False)

    def _check(self, account: _Account, limits: Limits, now: float) -> None:
        most = limits.max_concurrency
        account.requests = _settled(account.requests, limits.requests_per_minute, now)
        account.tokens = _settled(account.tokens, limits.tokens_per_minute, now)
        requests = account.requests.level if account.requests else None
        tokens = account.tokens.level if account.tokens else None
        refused = ""
        if most is not None and account.open >= most:
            refused = "max_concurrency"
        elif requests is not None and requests < 1:
            refused = "requests_per_minute"
        elif tokens is not None and tokens <= 0:
            refused = "tokens_per_minute"
        if refused:
            raise _refused(Verdict(refused, requests=requests, tokens=tokens), limits)

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


def _refused(verdict: Verdict, limits: Limits) -> QuotaExceeded:
    if verdict.refused == "max_concurrency":
        what, wait_s = f"{limits.max_concurrency} requests at once", _BUSY_RETRY_S
    elif verdict.refused == "requests_per_minute":
        what, wait_s = _short(verdict.requests, limits.requests_per_minute, "requests a minute")
    else:
        what, wait_s = _short(verdict.tokens, limits.tokens_per_minute, "tokens a minute")
    message = f"this key allows {what}"
    return QuotaExceeded(message, subject=verdict.refused, retry_after_s=wait_s)


def _short(level: float | None, per_minute: int | None, of_what: str) -> tuple[str, float]:
    """A limit in words, and how long until one more may pass."""
    missing = 1.0 - (level or 0.0)
    # With nothing to have, nothing is enough.
    wait_s = missing * _MINUTE_S / per_minute if per_minute else _MINUTE_S
    return f"{per_minute} {of_what}", wait_s
