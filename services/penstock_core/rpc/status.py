"""The one total table between Penstock's errors and gRPC statuses, both ways.

An error travels as ``google.rpc.Status`` with details: ``ErrorInfo`` always (reason = slug in
capitals, domain ``penstock``), ``BadRequest`` with the field, ``RetryInfo``, ``QuotaFailure``.
"""

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from penstock_core import errors as e

DOMAIN = "penstock"
_MAX_MESSAGE_CHARS = 1000
_MAX_FIELD_CHARS = 256

CODES: dict[type[e.PenstockError], grpc.StatusCode] = {
    e.PenstockError: grpc.StatusCode.UNKNOWN,
    e.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    e.PromptTooLong: grpc.StatusCode.INVALID_ARGUMENT,
    e.MalformedMessage: grpc.StatusCode.INVALID_ARGUMENT,
    e.NotFound: grpc.StatusCode.NOT_FOUND,
    e.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    e.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    e.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    e.LeaseInvalid: grpc.StatusCode.PERMISSION_DENIED,
    e.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    e.NotSupported: grpc.StatusCode.UNIMPLEMENTED,
    e.Rejected: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.BudgetSpent: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.LeaseStale: grpc.StatusCode.ABORTED,
    e.Unavailable: grpc.StatusCode.UNAVAILABLE,
    e.NoWorker: grpc.StatusCode.UNAVAILABLE,
    e.Draining: grpc.StatusCode.UNAVAILABLE,
    e.Evicted: grpc.StatusCode.ABORTED,
    e.WorkerLost: grpc.StatusCode.UNAVAILABLE,
    e.Aborted: grpc.StatusCode.CANCELLED,
    e.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    e.InternalError: grpc.StatusCode.INTERNAL,
    e.EngineFailed: grpc.StatusCode.INTERNAL,
}

# A status without our ErrorInfo came from gRPC itself or from a foreign server.
_FOREIGN: dict[grpc.StatusCode, type[e.PenstockError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: e.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: e.InvalidRequest,
    grpc.StatusCode.NOT_FOUND: e.NotFound,
    grpc.StatusCode.UNAUTHENTICATED: e.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: e.PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: e.Conflict,
    grpc.StatusCode.ALREADY_EXISTS: e.Conflict,
    grpc.StatusCode.UNIMPLEMENTED: e.NotSupported,
    grpc.StatusCode.RESOURCE_EXHAUSTED: e.Overloaded,
    grpc.StatusCode.UNAVAILABLE: e.Unavailable,
    grpc.StatusCode.CANCELLED: e.Aborted,
    grpc.StatusCode.ABORTED: e.Evicted,
    grpc.StatusCode.DEADLINE_EXCEEDED: e.DeadlineExceeded,
}

_BY_REASON = {cls.slug.upper(): cls for cls in e.all_errors()}


def to_status(error: e.PenstockError) -> status_pb2.Status:
    """The wire form of an error."""
    # It travels in a trailer, and trailers are bounded: what callers sent may stand in it.
    message = error.message[:_MAX_MESSAGE_CHARS]
    status = status_pb2.Status(code=CODES[type(error)].value[0], message=message)
    info = error_details_pb2.ErrorInfo(
        reason=error.slug.upper(), domain=DOMAIN, metadata=error.metadata
    )
    status.details.add().Pack(info)
    if isinstance(error, e.InvalidRequest | e.NotSupported) and error.field:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=error.field[:_MAX_FIELD_CHARS], description=message)
        status.details.add().Pack(bad)
    if isinstance(error, e.Rejected) and error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, e.QuotaExceeded):
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject=error.subject, description=message)
        status.details.add().Pack(quota)
    return status


def to_grpc_status(error: e.PenstockError) -> grpc.Status:
    """The form that ``context.abort_with_status`` takes."""
    status: grpc.Status = rpc_status.to_status(to_status(error))
    return status


def from_status(status: status_pb2.Status) -> e.PenstockError:
    """The error that a wire status stands for; unknown ones by their code."""
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    quota = error_details_pb2.QuotaFailure()
    for detail in status.details:
        for target in (info, bad, retry, quota):
            if detail.Is(target.DESCRIPTOR):
                detail.Unpack(target)
    code = _CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    cls = _BY_REASON.get(info.reason) if info.domain == DOMAIN else None
    if cls is None:
        cls = _FOREIGN.get(code, e.InternalError)
    error = cls(status.message)
    error.metadata = dict(info.metadata)
    if isinstance(error, e.InvalidRequest | e.NotSupported) and bad.field_violations:
        error.field = bad.field_violations[0].field
    if isinstance(error, e.Rejected) and retry.HasField("retry_delay"):
        error.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    if isinstance(error, e.QuotaExceeded) and quota.violations:
        error.subject = quota.violations[0].subject
    return error


def from_rpc_error(error: grpc.RpcError) -> e.PenstockError:
    """The error behind a failed call, as sync and aio stubs raise it."""
    status = rpc_status.from_call(error) if hasattr(error, "trailing_metadata") else None
    if status is not None:
        return from_status(status)
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    details = error.details() if hasattr(error, "details") else str(error)
    cls = _FOREIGN.get(code or grpc.StatusCode.UNKNOWN, e.InternalError)
    return cls(details or f"the call failed with {code}")


_CODE_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
