"""Errors in OpenAI's shape: the one total table between Penstock's errors and HTTP. Pure.

Field paths of the wire request are mapped back to the names that OpenAI's parameters have.
"""

import re
from dataclasses import dataclass

from penstock_core import errors as e
from penstock_openai.json_object import Json

CLIENT_CLOSED_REQUEST = 499
INVALID = "invalid_request_error"
_SERVER = "server_error"


@dataclass(frozen=True, slots=True)
class Face:
    """What the HTTP client sees of a class of errors."""

    status: int
    type: str
    code: str | None = None


FACES: dict[type[e.PenstockError], Face] = {
    e.PenstockError: Face(500, _SERVER),
    e.InvalidRequest: Face(400, INVALID),
    e.PromptTooLong: Face(400, INVALID, "context_length_exceeded"),
    e.MalformedMessage: Face(400, INVALID),
    e.NotFound: Face(404, INVALID, "not_found"),
    e.ModelNotFound: Face(404, INVALID, "model_not_found"),
    e.Unauthenticated: Face(401, INVALID, "invalid_api_key"),
    e.PermissionDenied: Face(403, INVALID, "permission_denied"),
    e.LeaseInvalid: Face(403, INVALID, "lease_invalid"),
    e.Conflict: Face(409, INVALID, "conflict"),
    # 400 and not 501: SDKs try a 5xx again, and a feature does not appear by asking twice.
    e.NotSupported: Face(400, INVALID, "not_supported"),
    e.Rejected: Face(429, "rate_limit_error", "rejected"),
    e.Overloaded: Face(429, "rate_limit_error", "overloaded"),
    e.QuotaExceeded: Face(429, "rate_limit_error", "rate_limit_exceeded"),
    e.BudgetSpent: Face(429, "insufficient_quota", "insufficient_quota"),
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

# Wire path -> OpenAI's parameter; the longest match wins, the rest of the path stays.
_RENAMED = (
    ("text", "prompt"),
    ("tokens.ids", "prompt"),
    ("tokens", "prompt"),
    ("texts", "input"),
    ("token_inputs", "input"),
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


def face_of(error: e.PenstockError) -> Face:
    """What the HTTP client sees of an error."""
    return FACES[type(error)]


def body_of(error: e.PenstockError) -> Json:
    """``{"error": ...}`` for a response body, a stream event or a batch's line."""
    param = None
    if isinstance(error, (e.InvalidRequest, e.NotSupported)):
        param = param_of(error.field)
    return error_object(error.message, face_of(error), param)


def error_object(message: str, face: Face, param: str | None = None) -> Json:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": face.type, "param": param, "code": face.code}}
