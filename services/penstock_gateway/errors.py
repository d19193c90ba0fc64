"""Errors as HTTP answers: OpenAI's error object with the headers that tell an SDK what to do."""

import math

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from penstock_core import errors as e
from penstock_openai.errors import INVALID, Face, body_of, error_object, face_of

_DEFAULT_RETRY_AFTER_S = 1.0
_CODES = {
    404: "unknown_url",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
}


def response_of(error: e.PenstockError) -> JSONResponse:
    """The whole HTTP answer to a failed request."""
    face = face_of(error)
    return JSONResponse(body_of(error), face.status, _headers(error, face))


def response_of_http(error: HTTPException) -> JSONResponse:
    """The answer to a request that no endpoint took."""
    face = Face(error.status_code, INVALID, _CODES.get(error.status_code))
    return JSONResponse(error_object(error.detail, face), face.status, error.headers)


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
