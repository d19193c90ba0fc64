"""Who is calling: API keys (hashed at rest) that name a tenant.

A key travels as ``authorization: Bearer KEY`` in gRPC metadata or an HTTP header. Without a key
ring everybody is the tenant ``default``: fit for loopback only. A *service* key may speak for
another tenant (``x-penstock-tenant``), which is how the batch runner works for its submitters.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from penstock_core.budgets import Budget, read_budgets
from penstock_core.errors import PermissionDenied, Unauthenticated

DEFAULT_TENANT = "default"
TENANT_KEY = "x-penstock-tenant"
_MAX_KEY_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    tenant: str
    is_service: bool = False


@dataclass(frozen=True, slots=True)
class KeyRing:
    """API keys by the SHA-256 of their text. An empty ring admits everybody."""

    by_digest: Mapping[str, Principal]
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    """What tenants may spend, by tenant; see ``penstock_core.budgets``."""

    @classmethod
    def open_to_all(cls) -> Self:
        """A ring without keys."""
        return cls({})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read ``{"keys": [{"sha256": ..., "tenant": ..., "service": false, "budget": {...}}]}``.

        Raises:
            ValueError: the file does not have this form.
        """
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))["keys"]
            ring = {
                str(entry["sha256"]).lower(): Principal(
                    str(entry["tenant"]), bool(entry.get("service", False))
                )
                for entry in entries
            }
            budgets = read_budgets(entries)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no key file: {error}") from error
        if not ring:
            raise ValueError(f"{path} holds no key; leave the setting empty to admit everybody")
        return cls(ring, budgets)

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """The caller behind a request's headers (lower-case names).

        Raises:
            Unauthenticated: keys are required and none, or a wrong one, was shown.
            PermissionDenied: the key may not speak for another tenant.
        """
        principal = self._principal(headers.get("authorization", ""))
        asked_for = headers.get(TENANT_KEY, "")
        if not asked_for or asked_for == principal.tenant:
            return principal
        if not principal.is_service:
            raise PermissionDenied(f"this key may not act for another tenant ({TENANT_KEY})")
        return Principal(asked_for, is_service=True)

    def _principal(self, authorization: str) -> Principal:
        if not self.by_digest:
            return Principal(DEFAULT_TENANT, is_service=True)
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("an API key is needed: authorization: Bearer KEY")
        # Looking up a digest leaks no timing about the key itself.
        principal = self.by_digest.get(digest(key.strip()[:_MAX_KEY_LENGTH]))
        if principal is None:
            raise Unauthenticated("the API key is wrong")
        return principal


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
