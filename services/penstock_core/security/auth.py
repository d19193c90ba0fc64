"""Who is calling: API keys (hashed at rest) that name a tenant and what it may do.

A key travels as ``authorization: Bearer KEY`` in gRPC metadata or an HTTP header. Without a key
ring everybody is the tenant ``default``: fit for loopback only. A *service* key may speak for
another tenant (``x-penstock-tenant``), which is how the batch runner works for its submitters.
Where entries come from, and how they change at run time: ``key_entries``, ``key_stores``, ``live_keys``.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from penstock_core.cost.budgets import Budget
from penstock_core.errors import PermissionDenied, Unauthenticated

DEFAULT_TENANT = "default"
TENANT_KEY = "x-penstock-tenant"
MAX_TENANT_LENGTH = 128
_MAX_KEY_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """What the holder of a key may use up; None is unlimited, no ``models`` are all of them."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    models: frozenset[str] = frozenset()


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Attributes:
        tenant: in whose name it acts.
        is_service: whether it is part of the platform.
        account: what its limits are counted by; the keys of one rotation share it.
        limits: what it may use up.
        expires_unix_s: when its key ends.
    """

    tenant: str
    is_service: bool = False
    account: str = field(default="", compare=False)
    limits: Limits = field(default=UNLIMITED, compare=False)
    expires_unix_s: float = field(default=float("inf"), compare=False)


class Authenticator(Protocol):
    """Tells who calls."""

    def authenticate(self, headers: Mapping[str, str], method: str = "") -> Principal:
        """The caller behind a request's headers (lower-case names).

        Raises:
            Unauthenticated: credentials are required and none, or wrong ones, were shown.
            PermissionDenied: they do not allow it.
        """
        ...


@dataclass(frozen=True, slots=True)
class KeyRing:
    """API keys by the SHA-256 of their text. Only a ring that is open admits without one."""

    by_digest: Mapping[str, Principal]
    is_open: bool = False
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    """What tenants may spend, by tenant; see ``penstock_core.cost.budgets``."""
    unix_time: Callable[[], float] = field(default=time.time, compare=False, repr=False)

    @classmethod
    def open_to_all(cls) -> Self:
        """A ring that asks for no key."""
        return cls({}, is_open=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file; see ``key_entries`` for its form.

        Raises:
            ValueError: the file does not have this form.
        """
        from penstock_core.security.key_entries import (  # noqa: PLC0415 - it builds on this module
            budgets_of,
            parse_keys,
        )

        try:
            entries = parse_keys(path.read_text(encoding="utf-8"))
            budgets = budgets_of(entries)
        except ValueError as error:
            raise ValueError(f"{path} is no key file: {error}") from error
        if not entries:
            raise ValueError(f"{path} holds no key; leave the setting empty to admit everybody")
        return cls({entry.sha256: entry.principal() for entry in entries}, budgets=budgets)

    def authenticate(self, headers: Mapping[str, str], method: str = "") -> Principal:
        """See ``Authenticator``; every method asks for the same."""
        principal = self._principal(headers.get("authorization", ""))
        asked_for = headers.get(TENANT_KEY, "")
        if not asked_for or asked_for == principal.tenant:
            return principal
        if not principal.is_service:
            raise PermissionDenied(f"this key may not act for another tenant ({TENANT_KEY})")
        if len(asked_for) > MAX_TENANT_LENGTH or not asked_for.isprintable():
            raise PermissionDenied(f"{TENANT_KEY} has at most {MAX_TENANT_LENGTH} characters")
        return Principal(asked_for, is_service=True)

    def _principal(self, authorization: str) -> Principal:
        if self.is_open:
            return Principal(DEFAULT_TENANT, is_service=True)
        # Looking up a digest leaks no timing about the key itself.
        principal = self.by_digest.get(digest(bearer(authorization)))
        if principal is None:
            raise Unauthenticated("the API key is wrong")
        if principal.expires_unix_s <= self.unix_time():
            raise Unauthenticated("the API key has expired")
        return principal


def bearer(authorization: str) -> str:
    """The key in an ``authorization`` header. Raises Unauthenticated if there is none."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Unauthenticated("an API key is needed: authorization: Bearer KEY")
    return key.strip()[:_MAX_KEY_LENGTH]


def digest(key: str) -> str:
    """How a key is stored."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A fresh key with 192 random bits."""
    return f"pk-{secrets.token_urlsafe(24)}"


def key_file(entries: Iterable[tuple[str, str, bool]]) -> str:
    """The text of a key file for (key, tenant, is service) triples."""
    keys = [{"sha256": digest(k), "tenant": t, "service": s} for k, t, s in entries]
    return json.dumps({"keys": keys}, indent=2)
