"""Every way a request can fail, drawn as one tree.

Owns the meaning of a failure (a stable slug, whether trying again can help) and
knows no transport: ``penstock_core.rpc.status`` maps it to gRPC, ``penstock_openai.errors`` to HTTP.

    PenstockError
    ├── InvalidRequest ── PromptTooLong, MalformedMessage
    ├── NotFound ── ModelNotFound
    ├── Unauthenticated
    ├── PermissionDenied ── LeaseInvalid
    ├── Conflict                the thing is in a state that does not allow it
    ├── NotSupported
    ├── Rejected                before work began: trying again later or elsewhere can help
    │   ├── Overloaded ── QuotaExceeded
    │   ├── LeaseStale
    │   └── Unavailable ── NoWorker, Draining
    ├── Evicted                 after work began
    │   ├── WorkerLost
    │   └── Aborted
    ├── DeadlineExceeded
    └── InternalError ── EngineFailed
"""

from collections.abc import Mapping
from typing import ClassVar


class PenstockError(Exception):
    """Base of all of Penstock's errors.

    Attributes:
        slug: stable name of the failure, for machines; part of the public contract.
        retryable: whether the same request may succeed later or on another worker.
        message: for people.
        metadata: machine-readable facts (numbers as text), carried in ``ErrorInfo``.
    """

    slug: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})


class InvalidRequest(PenstockError):
    """The request itself is wrong; ``field`` is the path of the culprit."""

    slug = "invalid_request"

    def __init__(
        self, message: str, *, field: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.field = field


class PromptTooLong(InvalidRequest):
    """Prompt and requested output do not fit the model's context."""

    slug = "prompt_too_long"


class MalformedMessage(InvalidRequest):
    """The bytes are no message of the declared type, or text in it is no UTF-8."""

    slug = "malformed_message"


class NotFound(PenstockError):
    """What was named does not exist, or is not this tenant's."""

    slug = "not_found"


class ModelNotFound(NotFound):
    """No worker serves a model of this name."""

    slug = "model_not_found"


class Unauthenticated(PenstockError):
    """No credentials, or wrong ones."""

    slug = "unauthenticated"


class PermissionDenied(PenstockError):
    """The credentials do not allow it."""

    slug = "permission_denied"


class LeaseInvalid(PermissionDenied):
    """A lease is missing, forged or for something else."""

    slug = "lease_invalid"


class Conflict(PenstockError):
    """The thing exists but its state does not allow the call."""

    slug = "conflict"


class NotSupported(PenstockError):
    """This server or model cannot do it, now or later; ``field`` is the path of what asked for it."""

    slug = "not_supported"

    def __init__(
        self, message: str, *, field: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.field = field


class Rejected(PenstockError):
    """Refused before any work was done. ``retry_after_s`` says when to try again, if known."""

    slug = "rejected"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.retry_after_s = retry_after_s


class Overloaded(Rejected):
    """A bounded queue is full."""

    slug = "overloaded"


class QuotaExceeded(Overloaded):
    """The tenant's limit is used up; ``subject`` names the limit."""

    slug = "quota_exceeded"

    def __init__(
        self, message: str, *, subject: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.subject = subject


class BudgetSpent(QuotaExceeded):
    """The tenant's budget of this period is spent."""

    slug = "budget_spent"


class LeaseStale(Rejected):
    """The lease expired or names an earlier epoch of the worker: route again."""

    slug = "lease_stale"


class Unavailable(Rejected):
    """The server cannot take the request now."""

    slug = "unavailable"


class NoWorker(Unavailable):
    """The model is known but no worker can take the request."""

    slug = "no_worker"


class Draining(Unavailable):
    """The worker finishes what it has and takes nothing new."""

    slug = "draining"


class Evicted(PenstockError):
    """Ended after work had begun."""

    slug = "evicted"
    retryable = True


class WorkerLost(Evicted):
    """The worker that served the request is gone."""

    slug = "worker_lost"


class Aborted(Evicted):
    """Somebody ended the request."""

    slug = "aborted"
    retryable = False


class DeadlineExceeded(PenstockError):
    """The caller's deadline passed."""

    slug = "deadline_exceeded"


class InternalError(PenstockError):
    """A defect; the details are in the server's log."""

    slug = "internal"


class EngineFailed(InternalError):
    """The engine stopped; its worker is unhealthy and will be restarted."""

    slug = "engine_failed"
    retryable = True


def all_errors() -> list[type[PenstockError]]:
    """Every class of the tree, parents before children."""
    found: list[type[PenstockError]] = [PenstockError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return found
