"""Reading a JSON body: bounded while it arrives, strict UTF-8, checked against a schema."""

from typing import TypeVar

from pydantic import BaseModel
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request

from penstock_core.errors import InvalidRequest
from penstock_openai.bodies import validated

Schema = TypeVar("Schema", bound=BaseModel)


async def read_json(request: Request, schema: type[Schema], max_bytes: int) -> Schema:
    """The request's body as ``schema``.

    Raises:
        InvalidRequest: no JSON of this form; ``field`` is OpenAI's parameter.
        HTTPException: 413 if the body is larger than allowed, 415 if it is declared as no JSON.
    """
    require_content_type(request, "application/json")
    return validated(_parsed(await _read(request, max_bytes)), schema)


def require_content_type(request: Request, wanted: str) -> None:
    """Raise 415 unless the body is declared as ``wanted``: browsers may send other types anywhere."""
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != wanted:
        raise HTTPException(415, f"Content-Type must be {wanted}, not {found or 'missing'}")


def check_length(request: Request, max_bytes: int) -> None:
    """Raise 413 at once where the declared length is too large."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> HTTPException:
    """The refusal of a body beyond the limit."""
    # No "connection: close": with bytes unread that would be a reset, which can overtake the
    # answer. The server discards what is left of the body.
    return HTTPException(413, f"the body exceeds the limit of {max_bytes} bytes")


async def _read(request: Request, max_bytes: int) -> bytes:
    check_length(request, max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large(max_bytes)
    return bytes(body)


def _parsed(body: bytes) -> object:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"the body is no UTF-8: {error.reason} at byte {error.start}"
        ) from error
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {error}"
        ) from error
