"""Checks parsed JSON against a schema and says what is wrong in OpenAI's words. Pure."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from penstock_core.errors import InvalidRequest

Schema = TypeVar("Schema", bound=BaseModel)


def validated(value: object, schema: type[Schema]) -> Schema:
    """A body as ``schema``. Raises InvalidRequest; ``field`` is OpenAI's parameter."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        raise _explained(details[0], schema) from error


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
