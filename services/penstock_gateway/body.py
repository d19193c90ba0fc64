"""Reading a JSON body: bounded while it arrives, strict UTF-8, checked against a schema."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request

from penstock_core.errors import InvalidRequest

Schema = TypeVar("Schema", bound=BaseModel)


async def read_json(request: Request, schema: type[Schema], max_bytes: int) -> Schema:
    """The request's body as ``schema``.

    Raises:
        InvalidRequest: no JSON of this form; ``field`` is OpenAI's parameter.
        HTTPException: 413 if the body is larger than allowed, 415 if it is declared as no JSON.
    """
    require_content_type(request, "application/json")
    value = _parsed(await _read(request, max_bytes))
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        raise _explained(details[0], schema) from error


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


def _explained(detail: ErrorDetails, schema: type[BaseModel]) -> InvalidRequest:
    kind, location = detail["type"], detail["loc"]
    if not location:
        return InvalidRequest("the body must be a JSON object")
    top = str(location[0])
    if kind == "extra_forbidden" and len(location) == 1:
        return InvalidRequest(f"Unrecognized request argument supplied: {top}", field=top)
    if kind == "missing" and len(location) == 1:
        return InvalidRequest(f"Missing required parameter: '{top}'.", field=top)
    forms = _forms(schema, top)
    if forms:
        return InvalidRequest(f"Invalid value for '{top}': it must be {forms}", field=top)
    path = _path(location)
    reason = detail["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"Invalid value for '{path}': {reason}", field=path)


def _forms(schema: type[BaseModel], parameter: str) -> str:
    """What a parameter of several forms may be; pydantic would tell about one of them only."""
    field = schema.model_fields.get(parameter)
    extra = field.json_schema_extra if field is not None else None
    return str(extra.get("forms", "")) if isinstance(extra, dict) else ""


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
