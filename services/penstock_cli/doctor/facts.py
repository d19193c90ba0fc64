"""What was found out about a deployment. Values only; ``checks`` judges them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from penstock_core.registry import RedisFacts, WorkerEntry


class Kind(StrEnum):
    """What a process is."""

    ROUTER = "router"
    WORKER = "worker"
    BATCH = "batch"
    GATEWAY = "gateway"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Process:
    """One process as it answered.

    Attributes:
        name: for people, with its address where several are of a kind.
        error: why it did not answer; empty if it did.
        is_ready: whether it says that it takes requests.
        version: of Penstock; empty if it does not tell.
        skew_s: its clock minus ours; None if it does not tell.
        doubt_s: how wrong the skew may be.
    """

    kind: Kind
    name: str
    address: str
    error: str = ""
    is_ready: bool = False
    version: str = ""
    skew_s: float | None = None
    doubt_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Followed:
    """A worker as one router sees it. ``state`` is the sync state's name."""

    router: str
    worker_id: str
    endpoint: str
    state: str
    divergences: int
    is_shunned: bool
    models: tuple[str, ...]
    revision: str
    tokenizer: str


@dataclass(frozen=True, slots=True)
class IndexCheck:
    """A router's index of a worker beside the worker's own: (blocks, digest) after the same delta.

    None where they could not be compared, and ``why``.
    """

    router: str
    worker_id: str
    indexed: tuple[int, int] | None
    actual: tuple[int, int] | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class LeaseCheck:
    """What a worker said to a lease of a router. ``error`` is a slug, empty if it took it.

    ``salt`` is the cache salt in the lease; None if no lease came.
    """

    router: str
    worker_id: str
    error: str
    message: str = ""
    salt: int | None = None


@dataclass(frozen=True, slots=True)
class OpenDoor:
    """Whether a worker serves somebody who shows no lease."""

    worker_id: str
    is_open: bool


@dataclass(frozen=True, slots=True)
class RedisCheck:
    """Redis, and the workers that are announced there."""

    address: str
    is_local: bool
    error: str = ""
    facts: RedisFacts | None = None
    skew_s: float = 0.0
    entries: tuple[WorkerEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class KeysCheck:
    """The file of API keys. ``error`` says why it cannot be read."""

    path: str
    error: str = ""
    keys: int = 0
    has_service: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything."""

    processes: Sequence[Process] = ()
    refusals: Sequence[tuple[str, str]] = ()
    followed: Sequence[Followed] = ()
    indexes: Sequence[IndexCheck] = ()
    leases: Sequence[LeaseCheck] = ()
    doors: Sequence[OpenDoor] = ()
    redis: RedisCheck | None = None
    keys: KeysCheck | None = None
    own_version: str = ""


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about a deployment; ``fix`` says what to do about it."""

    check: str
    level: Level
    message: str
    fix: str = ""
