"""When a request that failed is tried again, and where not. Router and client use the same.

Before the first token a failure costs nothing, so it is simply repeated elsewhere, a few times.
Behind it the request goes on from what the client has; then a worker is passed over for a while
only, since the only one there is may come back. Pure; the caller brings the clock.
"""

from collections.abc import Callable

import grpc

from penstock_core.errors import (
    Aborted,
    Conflict,
    InternalError,
    PenstockError,
    QuotaExceeded,
    Unavailable,
    WorkerLost,
)
from penstock_core.rpc.status import from_rpc_error

MAX_FIRST_ATTEMPTS = 3
# In a row, without a token between them: such a request may be what breaks its workers.
_MAX_FRUITLESS = 4
_MAX_RESUMES = 64
# How long a request that has begun waits for a worker that could go on with it.
PATIENCE_S = 30.0
_PASSED_OVER_S = 5.0
_BY_CONNECTION = {"lost": "connection"}


class Attempts:
    """The failures of one request."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failed: dict[str, float] = {}
        self._tokens = 0
        self._fruitless = 0
        self.number = 0

    def failed(self, worker_id: str, tokens: int) -> None:
        """An attempt ended there, with this many tokens at the client in all."""
        self.number += 1
        self._failed[worker_id] = self._clock()
        self._fruitless = self._fruitless + 1 if tokens == self._tokens else 1
        self._tokens = tokens

    def may_repeat(self, error: PenstockError) -> bool:
        """Whether to try again although nothing has come yet."""
        return helps_elsewhere(error) and self.number < MAX_FIRST_ATTEMPTS

    def may_resume(self, error: PenstockError) -> bool:
        """Whether to go on with what has come."""
        # A forerunner may be ending there still.
        elsewhere = helps_elsewhere(error) or isinstance(error, Conflict)
        return elsewhere and self._fruitless < _MAX_FRUITLESS and self.number < _MAX_RESUMES

    def excluded(self, *, has_begun: bool) -> frozenset[str]:
        """Workers that are not to be tried now."""
        if not has_begun:
            return frozenset(self._failed)
        since = self._clock() - _PASSED_OVER_S
        return frozenset(w for w, at in self._failed.items() if at > since)


def helps_elsewhere(error: PenstockError) -> bool:
    """Whether another worker may do better."""
    return error.retryable and not isinstance(error, QuotaExceeded)


def is_lost_connection(error: PenstockError) -> bool:
    """Whether it says nothing but that the other side went away."""
    return _BY_CONNECTION.items() <= error.metadata.items()


def call_failure(error: grpc.aio.AioRpcError, who: str, *, has_begun: bool) -> PenstockError:
    """What a failed call of a generation means; ``who`` was called."""
    failure = from_rpc_error(error)
    keys = {key for key, _ in error.trailing_metadata() or ()}
    is_transport = "grpc-status-details-bin" not in keys
    # A worker that is being stopped cancels its calls; one's own cancel never comes as an error.
    if is_transport and isinstance(failure, Unavailable | Aborted | InternalError):
        is_lost = has_begun or not isinstance(failure, Unavailable)
        return lost_connection(failure.message, who, is_lost=is_lost)
    return failure


def lost_connection(why: str, who: str, *, is_lost: bool) -> PenstockError:
    """The connection to ``who`` broke: it was lost, or was never reached."""
    if is_lost:
        return WorkerLost(f"{who} was lost: {why}", metadata=_BY_CONNECTION)
    return Unavailable(f"{who} cannot be reached: {why}", metadata=_BY_CONNECTION)
