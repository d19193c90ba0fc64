"""When a failed request is tried again, and where not."""

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from penstock_core.errors import (
    Aborted,
    Conflict,
    Draining,
    Evicted,
    InvalidRequest,
    PenstockError,
    QuotaExceeded,
    Unavailable,
    WorkerLost,
)
from penstock_core.rpc.attempts import Attempts, call_failure, is_lost_connection
from penstock_core.rpc.status import to_grpc_status


class Clock:
    """A clock to be set."""

    now = 0.0

    def __call__(self) -> float:
        """Read it."""
        return self.now


def test_before_the_first_token_three_workers_are_tried_each_once() -> None:
    attempts = Attempts(Clock())
    for number in range(3):
        assert attempts.may_repeat(Draining("")) is (number < 3)
        attempts.failed(f"w{number}", 0)
    assert not attempts.may_repeat(Draining(""))
    assert attempts.excluded(has_begun=False) == {"w0", "w1", "w2"}


def test_a_worker_that_failed_midway_is_passed_over_for_a_while_only() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    attempts.failed("w0", 5)
    assert attempts.excluded(has_begun=True) == {"w0"}
    clock.now = 6.0
    assert not attempts.excluded(has_begun=True)


def test_progress_buys_further_attempts() -> None:
    attempts = Attempts(Clock())
    for tokens in range(1, 20):
        attempts.failed("w0", tokens)
        assert attempts.may_resume(WorkerLost(""))
    for _ in range(4):
        attempts.failed("w0", 19)
    assert not attempts.may_resume(WorkerLost(""))


@pytest.mark.parametrize(
    ("error", "resumes"),
    [
        (Evicted(""), True),
        (Conflict(""), True),
        (Aborted(""), False),
        (QuotaExceeded(""), False),
        (InvalidRequest(""), False),
    ],
)
def test_only_what_another_worker_can_mend_is_resumed(error: PenstockError, resumes: bool) -> None:
    attempts = Attempts(Clock())
    attempts.failed("w0", 3)
    assert attempts.may_resume(error) is resumes


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_a_broken_connection_is_a_lost_worker_once_tokens_came(code: grpc.StatusCode) -> None:
    broken = AioRpcError(code, Metadata(), Metadata(), "Socket closed")
    failure = call_failure(broken, "worker w0", has_begun=True)
    assert isinstance(failure, WorkerLost)
    assert "w0" in failure.message
    assert is_lost_connection(failure)


def test_a_worker_that_cannot_be_reached_is_unavailable() -> None:
    refused = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "refused")
    assert type(call_failure(refused, "w0", has_begun=False)) is Unavailable


def test_what_a_worker_says_itself_is_kept() -> None:
    status = to_grpc_status(Aborted("somebody ended it"))
    said = AioRpcError(status.code, Metadata(), Metadata(*status.trailing_metadata), status.details)
    failure = call_failure(said, "w0", has_begun=True)
    assert isinstance(failure, Aborted)
    assert not is_lost_connection(failure)
