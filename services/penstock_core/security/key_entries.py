# ruff: noqa: TRY004 - what is wrong here is a file, not an argument
"""One API key as it is stored, in a file or in Redis: never the key itself, only its digest.

    {"keys": [{"id": "key_...", "sha256": "...", "tenant": "acme", "name": "web", "service": false,
               "created_unix_s": 0, "expires_unix_s": 0,
               "limits": {"requests_per_minute": 600, "tokens_per_minute": 100000, "max_concurrency": 32},
               "models": ["penstock-demo"],
               "budget": {"amount": 25, "period": "month", "currency": "USD"}}]}

Only ``sha256`` and ``tenant`` must be there. An unknown field is an error: a limit that is spelled
wrong must not silently be none.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from penstock_core.cost.budgets import Budget, agreed_budgets
from penstock_core.security.auth import MAX_TENANT_LENGTH, UNLIMITED, Limits, Principal

_FIELDS = frozenset(
    {"id", "sha256", "tenant", "name", "service", "created_unix_s", "expires_unix_s", "limits", "models",
     "budget"}
)  # fmt: skip
_LIMITS = ("requests_per_minute", "tokens_per_minute", "max_concurrency")
_DIGEST_CHARS = 64
_SHORT_ID_CHARS = 12


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A stored key. ``name`` is what its rotations share; ``expires_unix_s`` 0 is never."""

    sha256: str
    tenant: str
    id: str = ""
    name: str = ""
    service: bool = False
    created_unix_s: int = 0
    expires_unix_s: int = 0
    limits: Limits = UNLIMITED
    budget: Budget | None = None

    def principal(self) -> Principal:
        """Whom the key admits."""
        return Principal(
            self.tenant,
            self.service,
            account=f"{self.tenant}/{self.name or self.id}",
            limits=self.limits,
            expires_unix_s=self.expires_unix_s or float("inf"),
        )

    def to_json(self) -> dict[str, object]:
        """As it is stored; what is not set is left out."""
        told = {name: getattr(self.limits, name) for name in _LIMITS}
        everything: dict[str, object] = {
            "id": self.id,
            "sha256": self.sha256,
            "tenant": self.tenant,
            "name": self.name,
            "service": self.service,
            "created_unix_s": self.created_unix_s,
            "expires_unix_s": self.expires_unix_s,
            "limits": {name: value for name, value in told.items() if value is not None},
            "models": sorted(self.limits.models),
            "budget": asdict(self.budget) if self.budget else None,
        }
        return {name: value for name, value in everything.items() if value}


def parse_keys(text: str) -> list[KeyEntry]:
    """The entries of a key file. Raises ValueError if it has another form."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError('it must be {"keys": [...]}')
    return [parse_key(entry) for entry in document["keys"]]


def render_keys(entries: Iterable[KeyEntry]) -> str:
    """The text of a key file."""
    return json.dumps({"keys": [entry.to_json() for entry in entries]}, indent=2) + "\n"


def parse_key(raw: object) -> KeyEntry:
    """One entry. Raises ValueError naming the field that is wrong."""
    if not isinstance(raw, Mapping):
        raise ValueError("a key must be an object")
    unknown = sorted(map(str, raw.keys() - _FIELDS))
    if unknown:
        raise ValueError(f"unknown field {', '.join(unknown)} of a key")
    sha256, tenant = _text(raw, "sha256").lower(), _text(raw, "tenant")
    if len(sha256) != _DIGEST_CHARS or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError("sha256 of a key must be 64 hexadecimal digits")
    if not 0 < len(tenant) <= MAX_TENANT_LENGTH or not tenant.isprintable():
        raise ValueError(f"tenant of a key must have 1 to {MAX_TENANT_LENGTH} characters")
    service = raw.get("service", False)
    if not isinstance(service, bool):
        raise ValueError("service of a key must be true or false")
    return KeyEntry(
        sha256=sha256,
        tenant=tenant,
        id=_text(raw, "id") or sha256[:_SHORT_ID_CHARS],
        name=_text(raw, "name"),
        service=service,
        created_unix_s=_count(raw, "created_unix_s") or 0,
        expires_unix_s=_count(raw, "expires_unix_s") or 0,
        limits=_limits(raw),
        budget=None if raw.get("budget") is None else Budget.read(raw["budget"]),
    )


def budgets_of(entries: Iterable[KeyEntry]) -> dict[str, Budget]:
    """Budgets by tenant. Raises ValueError if those of one tenant's keys differ."""
    return agreed_budgets((entry.tenant, entry.budget) for entry in entries)


def _limits(raw: Mapping[str, object]) -> Limits:
    told, models = raw.get("limits", {}), raw.get("models", [])
    if not isinstance(told, Mapping):
        raise ValueError("limits of a key must be an object")
    unknown = sorted(map(str, told.keys() - set(_LIMITS)))
    if unknown:
        raise ValueError(f"unknown limit {', '.join(unknown)} of a key")
    if not isinstance(models, list) or not all(isinstance(name, str) for name in models):
        raise ValueError("models of a key must be a list of names")
    requests, tokens, at_once = (_count(told, name) for name in _LIMITS)
    return Limits(requests, tokens, at_once, frozenset(models))


def _text(raw: Mapping[str, object], name: str) -> str:
    value = raw.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name} of a key must be text")
    return value


def _count(raw: Mapping[str, object], name: str) -> int | None:
    value = raw.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} of a key must be a whole number, not negative")
    return value
