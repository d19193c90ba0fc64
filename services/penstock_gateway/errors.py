"""Errors in OpenAI's shape: the one total table between Penstock's errors and HTTP.

Nothing else in the project knows HTTP statuses. Field paths of the wire request are mapped back to
the names that OpenAI's parameters have.
"""

import math
import re
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from penstock_core import errors as e
from penstock_gateway.json_object import Json

CLIENT_CLOSED_REQUEST = 499
_DEFAULT_RETRY_AFTER_S = 1.0
_INVALID = "invalid_request_error"
_SERVER = "server_error"


@dataclass(frozen=True, slots=True)
class Face:
    """What the HTTP client sees of a class of errors."""

    status: int
    type: str
    code: str | None = None


FACES: dict[type[e.PenstockError], Face] = {
    e.PenstockError: Face(500, _SERVER),
    e.InvalidRequest: Face(400, _INVALID),
    e.PromptTooLong: Face(400, _INVALID, "context_length_exceeded"),
    e.MalformedMessage: Face(400, _INVALID),
    e.NotFound: Face(404, _INVALID, "not_found"),
    e.ModelNotFound: Face(404, _INVALID, "model_not_found"),
    e.Unauthenticated: Face(401, _INVALID, "invalid_api_key"),
    e.PermissionDenied: Face(403, _INVALID, "permission_denied"),
    e.LeaseInvalid: Face(403, _INVALID, "lease_invalid"),
    e.Conflict: Face(409, _INVALID, "conflict"),
    # 400 and not 501: SDKs try a 5xx again, and a feature does not appear by asking twice.
    e.NotSupported: Face(400, _INVALID, "not_supported"),
    e.Rejected: Face(429, "rate_limit_error", "rejected"),
    e.Overloaded: Face(429, "rate_limit_error", "overloaded"),
    e.QuotaExceeded: Face(429, "rate_limit_error", "rate_limit_exceeded"),
    e.LeaseStale: Face(503, _SERVER, "lease_stale"),
    e.Unavailable: Face(503, _SERVER, "unavailable"),
    e.NoWorker: Face(503, _SERVER, "no_worker"),
    e.Draining: Face(503, _SERVER, "draining"),
    e.Evicted: Face(503, _SERVER, "evicted"),
    e.WorkerLost: Face(503, _SERVER, "worker_lost"),
    e.Aborted: Face(CLIENT_CLOSED_REQUEST, _SERVER, "aborted"),
    e.DeadlineExceeded: Face(504, "timeout_error", "deadline_exceeded"),
    e.InternalError: Face(500, _SERVER, "internal"),
    e.EngineFailed: Face(500, _SERVER, "engine_failed"),
}

_STATUS_CODES = {
    404: "unknown_url",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
}

# Wire path -> OpenAI's parameter; the longest match wins, the rest of the path stays.
_RENAMED = (
    ("text", "prompt"),
    ("tokens.ids", "prompt"),
    ("tokens", "prompt"),
    ("chat.", ""),
    ("sampling.", ""),
    ("stop.strings", "stop"),
    ("stop.token_ids", "stop_token_ids"),
    ("stop.", ""),
    ("output.", ""),
    ("constraint", "response_format"),
    ("completion_window_s", "completion_window"),
    ("description.", ""),
)
_WORD_END = re.compile(r"[.\[]|$")


def param_of(field: str) -> str | None:
    """The OpenAI parameter that a field path of the wire request came from."""
    for path, name in _RENAMED:
        rest = field.removeprefix(path)
        if rest != field and (path.endswith(".") or _WORD_END.match(rest)):
            return name + ("" if path == "constraint" else rest)
    return field or None


def body_of(error: e.PenstockError) -> Json:
    """``{"error": ...}`` for a response body or a stream event."""
    face = FACES[type(error)]
    param = param_of(error.field) if isinstance(error, e.InvalidRequest) else None
    return _body(error.message, face.type, param, face.code)


def response_of(error: e.PenstockError) -> JSONResponse:
    """The whole HTTP answer to a failed request."""
    face = FACES[type(error)]
    return JSONResponse(body_of(error), face.status, _headers(error, face))


def response_of_http(error: HTTPException) -> JSONResponse:
    """The answer to a request that no endpoint took."""
    code = _STATUS_CODES.get(error.status_code)
    body = _body(error.detail, _INVALID, None, code)
    return JSONResponse(body, error.status_code, error.headers)


def _body(message: str, kind: str, param: str | None, code: str | None) -> Json:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _headers(error: e.PenstockError, face: Face) -> dict[str, str]:
    headers: dict[str, str] = {}
    if face.status in (429, 503):
        told = error.retry_after_s if isinstance(error, e.Rejected) else None
        wait_s = _DEFAULT_RETRY_AFTER_S if told is None else told
        headers["retry-after"] = str(math.ceil(wait_s))
        headers["retry-after-ms"] = str(math.ceil(wait_s * 1000))
    if face.status == 401:
        headers["www-authenticate"] = "Bearer"
    if face.status >= 409:
        # The SDK would try every 409 and 5xx again unless told.
        headers["x-should-retry"] = "true" if error.retryable else "false"
    return headers
