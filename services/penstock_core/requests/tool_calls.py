"""A forced tool call as what it is to an engine: a constraint on the output.

Owns the shape of such an output, ``{"name": ..., "arguments": {...}}``, and the schema that holds a
model to it. Whoever turns a conversation into tokens has to call ``hold_to_tool_call`` before,
because behind it the tools are gone. Pure.
"""

import json

from penstock.common.v1 import chat_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.errors import InvalidRequest

REQUIRED = "required"
FREE_CHOICES = frozenset({"", "none", "auto"})
"""Choices that leave the output to the model, which writes calls as its chat template taught it.

They are part of the text until ``penstock_openai.written_calls`` reads them, online and in batches.
"""

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
# Below these a "$ref" is data.
_DATA = frozenset({"const", "enum", "default", "examples"})


def hold_to_tool_call(request: generate_pb2.GenerateRequest) -> None:
    """Put the constraint in that the choice of a tool means; it takes the place of another.

    Raises:
        InvalidRequest: a tool's parameters are no JSON object.
    """
    choice = request.chat.tool_choice
    if choice in FREE_CHOICES:
        return
    tools = [
        (tool.name, _parameters(tool, f"chat.tools[{index}].parameters_json"))
        for index, tool in enumerate(request.chat.tools)
        if choice in (REQUIRED, tool.name)
    ]
    request.constraint.json_schema = json.dumps(_schema(tools))


def _schema(tools: list[tuple[str, object]]) -> dict[str, object]:
    """One call of one of the tools; each tool's parameters are a definition of their own."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{index}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for index, (name, _) in enumerate(tools)
    ]
    definitions = {
        str(index): _rebased(parameters, f"#/$defs/{index}")
        for index, (_, parameters) in enumerate(tools)
    }
    return {"anyOf": calls, "$defs": definitions}


def _parameters(tool: chat_pb2.Tool, field: str) -> object:
    if not tool.parameters_json:
        return _NO_ARGUMENTS
    try:
        parameters = json.loads(tool.parameters_json)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field} is no JSON: {error}", field=field) from error
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"{field} must be a JSON object", field=field)
    return {"type": "object", **parameters}


def _rebased(schema: object, root: str) -> object:
    """The schema with its references to itself as they are below ``root``."""
    if isinstance(schema, list):
        return [_rebased(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: root + value.removeprefix("#")
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if key in _DATA
        else _rebased(value, root)
        for key, value in schema.items()
    }
