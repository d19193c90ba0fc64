"""OpenAI's messages and tools as a wire conversation. Pure."""

import json

from pydantic import JsonValue

from penstock.common.v1 import chat_pb2
from penstock_core.errors import InvalidRequest, NotSupported
from penstock_openai.schemas import ChatBody, ContentPart, Message, NamedTool, ToolBody


def chat_prompt(body: ChatBody) -> chat_pb2.ChatPrompt:
    """The conversation with its tools.

    Raises:
        InvalidRequest: a message lacks what its role needs, or the choice of tool has no such tool.
        NotSupported: content or a tool of a kind that models here do not read.
    """
    prompt = chat_pb2.ChatPrompt(
        messages=[_message(m, f"messages[{i}]") for i, m in enumerate(body.messages)],
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())],
    )
    if body.tool_choice is not None:
        prompt.tool_choice = _tool_choice(body.tool_choice, prompt)
    return prompt


def json_text(value: JsonValue, field: str) -> str:
    """JSON that came in as JSON that goes on. Raises InvalidRequest for a number like 1e999."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"'{field}' holds a number that JSON has not", field=field) from error


def _message(message: Message, path: str) -> chat_pb2.ChatMessage:
    calls = message.tool_calls or ()
    if message.content is None and not (message.role == "assistant" and calls):
        raise InvalidRequest(f"'{path}.content' is missing", field=f"{path}.content")
    if message.role == "tool" and not message.tool_call_id:
        raise InvalidRequest(
            "a tool's answer names the call it answers", field=f"{path}.tool_call_id"
        )
    return chat_pb2.ChatMessage(
        role=message.role,
        content=_content(message.content, f"{path}.content"),
        name=message.name or "",
        tool_call_id=message.tool_call_id or "",
        tool_calls=[
            chat_pb2.ToolCall(
                id=call.id, name=call.function.name, arguments_json=call.function.arguments
            )
            for call in calls
        ],
    )


def _content(content: str | list[ContentPart] | None, path: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(_part(part, f"{path}[{index}]") for index, part in enumerate(content))


def _part(part: ContentPart, path: str) -> str:
    if part.type not in ("text", "refusal"):
        raise NotSupported(
            f"{path}: content of type {part.type[:64]!r} is not supported", field=path
        )
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise InvalidRequest(f"'{path}.{part.type}' is missing", field=f"{path}.{part.type}")
    return text


def _tool(tool: ToolBody, path: str) -> chat_pb2.Tool:
    if tool.type != "function" or tool.function is None:
        raise NotSupported(f"{path}: only tools of type 'function' are supported", field=path)
    function = tool.function
    return chat_pb2.Tool(
        name=function.name,
        description=function.description or "",
        parameters_json=""
        if function.parameters is None
        else json_text(function.parameters, f"{path}.function.parameters"),
    )


def _tool_choice(choice: str | NamedTool, prompt: chat_pb2.ChatPrompt) -> str:
    name = choice if isinstance(choice, str) else choice.function.name
    if choice == "none":
        return name
    if not prompt.tools:
        raise InvalidRequest("tool_choice needs tools", field="tool_choice")
    if isinstance(choice, NamedTool) and name not in {tool.name for tool in prompt.tools}:
        raise InvalidRequest(f"tool_choice: no tool is called {name!r}", field="tool_choice")
    return name
