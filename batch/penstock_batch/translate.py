"""OpenAI's request bodies into ``GenerateRequest``: the batch's edge for what a line asks.

Strict: an unknown field or a wrong type is refused with the field's name, so that no wish is
silently dropped. Ranges are the server's to check (``penstock_core.validation``).
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from penstock.common.v1 import chat_pb2, sampling_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.blocks import pack_tokens
from penstock_core.errors import InvalidRequest, NotSupported

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

_Body = Mapping[str, Any]
# Fields that change nothing about the answer.
_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "parallel_tool_calls"})
_REFUSED = ("stream", "stream_options", "suffix", "audio", "modalities", "prediction", "functions")
_FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
)
_INTS = ("top_k", "seed", "n", "best_of")
_COMMON = frozenset(
    {"model", "stop", "stop_token_ids", "min_tokens", "max_tokens", "logit_bias", "ignore_eos"}
    | {"logprobs", *_FLOATS, *_INTS, *_IGNORED, *_REFUSED}
)
_KNOWN = {
    COMPLETIONS: _COMMON | {"prompt", "echo"},
    CHAT: _COMMON
    | {"messages", "tools", "tool_choice", "max_completion_tokens", "top_logprobs"}
    | {"response_format"},
}
_MAX_INT32 = 2**31 - 1


def to_request(endpoint: str, body: _Body) -> generate_pb2.GenerateRequest:
    """What a line asks for.

    Raises:
        InvalidRequest: a field is unknown, missing or of the wrong type; ``field`` is its name.
        NotSupported: a batch cannot do it.
    """
    for name in body:
        if name not in _KNOWN[endpoint]:
            raise InvalidRequest(f"Unrecognized request argument supplied: {name}", field=name)
    for name in _REFUSED:
        if body.get(name):
            raise NotSupported(f"{name} is not supported in a batch", metadata={"field": name})
    request = generate_pb2.GenerateRequest(
        model=_typed(body, "model", str, "a string") or "",
        sampling=_sampling(body),
        stop=_stop(body),
    )
    (_chat if endpoint == CHAT else _completion)(body, request)
    return request


def _completion(body: _Body, request: generate_pb2.GenerateRequest) -> None:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, list) and prompt and all(_is_uint32(token) for token in prompt):
        request.tokens.ids = pack_tokens(prompt)
    else:
        raise InvalidRequest(
            "prompt must be a string, a list of token ids, or a list of one of these",
            field="prompt",
        )
    request.output.echo = bool(_typed(body, "echo", bool, "a boolean"))
    if (logprobs := _integer(body, "logprobs")) is not None:
        request.output.logprobs = logprobs


def _chat(body: _Body, request: generate_pb2.GenerateRequest) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list of at least one message", field="messages")
    for index, message in enumerate(messages):
        request.chat.messages.append(_message(f"messages[{index}]", message))
    tools = _typed(body, "tools", list, "a list") or []
    for index, tool in enumerate(tools):
        request.chat.tools.append(_tool(f"tools[{index}]", tool))
    request.chat.tool_choice = _tool_choice(body.get("tool_choice"))
    limit = _integer(body, "max_completion_tokens")
    if limit is not None:
        request.stop.max_tokens = limit
    if _typed(body, "logprobs", bool, "a boolean"):
        request.output.logprobs = _integer(body, "top_logprobs") or 0
    _response_format(body.get("response_format"), request)


def _message(path: str, message: Any) -> chat_pb2.ChatMessage:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{path} must be an object", field=path)
    role = message.get("role")
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise InvalidRequest(f"{path}.role is {role!r}, which is no role", field=f"{path}.role")
    made = chat_pb2.ChatMessage(
        role=role,
        content=_content(f"{path}.content", message.get("content")),
        name=_typed(message, "name", str, "a string", path) or "",
        tool_call_id=_typed(message, "tool_call_id", str, "a string", path) or "",
    )
    for call in _typed(message, "tool_calls", list, "a list", path) or []:
        try:
            function = call["function"]
            made.tool_calls.add(
                id=call["id"], name=function["name"], arguments_json=function["arguments"]
            )
        except (KeyError, TypeError) as error:
            raise InvalidRequest(
                f"{path}.tool_calls must hold function calls", field=f"{path}.tool_calls"
            ) from error
    return made


def _content(path: str, content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content if isinstance(content, list) else [None]:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise InvalidRequest(f"{path} must be text or a list of text parts", field=path)
        texts.append(_typed(part, "text", str, "a string", path) or "")
    return "".join(texts)


def _tool(path: str, tool: Any) -> chat_pb2.Tool:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{path} must describe a function", field=path)
    return chat_pb2.Tool(
        name=function["name"],
        description=_typed(function, "description", str, "a string", path) or "",
        parameters_json=json.dumps(function.get("parameters") or {}),
    )


def _tool_choice(choice: Any) -> str:
    if choice is None or (isinstance(choice, str) and choice in ("none", "auto", "required")):
        return choice or ""
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        return _typed(choice["function"], "name", str, "a string", "tool_choice") or ""
    raise InvalidRequest(
        "tool_choice must be none, auto, required or a function", field="tool_choice"
    )


def _response_format(wish: Any, request: generate_pb2.GenerateRequest) -> None:
    kind = wish.get("type") if isinstance(wish, dict) else wish
    if kind is None or kind == "text":
        return
    if kind == "json_object":
        request.constraint.json_object = True
        return
    schema = wish.get("json_schema") if isinstance(wish, dict) else None
    if (
        kind == "json_schema"
        and isinstance(schema, dict)
        and isinstance(schema.get("schema"), dict)
    ):
        request.constraint.json_schema = json.dumps(schema["schema"])
        return
    raise InvalidRequest(
        "response_format must be text, json_object or a json_schema", field="response_format"
    )


def _sampling(body: _Body) -> sampling_pb2.SamplingParams:
    sampling = sampling_pb2.SamplingParams()
    for name in _FLOATS:
        value = _typed(body, name, (int, float), "a number")
        if value is not None:
            if not _is_number(value):
                raise InvalidRequest(f"{name} is out of range", field=name)
            setattr(sampling, name, value)
    for name in _INTS:
        if name == "seed":
            value = _integer(body, name, -(2**63), 2**64 - 1)
        else:
            value = _integer(body, name)
        if value is not None:
            # OpenAI's seeds are signed; ours are the same 64 bits.
            setattr(sampling, name, value % 2**64 if name == "seed" else value)
    sampling.ignore_eos = bool(_typed(body, "ignore_eos", bool, "a boolean"))
    for token, bias in (_typed(body, "logit_bias", dict, "an object") or {}).items():
        if not token.isdecimal() or int(token) >= 2**32 or not _is_number(bias):
            raise InvalidRequest("logit_bias must map token ids to numbers", field="logit_bias")
        sampling.logit_bias[int(token)] = bias
    return sampling


def _stop(body: _Body) -> sampling_pb2.StopConditions:
    conditions = sampling_pb2.StopConditions()
    stop = body.get("stop")
    strings = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise InvalidRequest("stop must be a string or a list of strings", field="stop")
    conditions.strings.extend(strings)
    tokens = _typed(body, "stop_token_ids", list, "a list") or []
    if not all(_is_uint32(token) for token in tokens):
        raise InvalidRequest("stop_token_ids must hold token ids", field="stop_token_ids")
    conditions.token_ids.extend(tokens)
    for name in ("max_tokens", "min_tokens"):
        if (value := _integer(body, name)) is not None:
            setattr(conditions, name, value)
    return conditions


def _typed(body: _Body, name: str, kind: Any, words: str, path: str = "") -> Any:
    value = body.get(name)
    wrong_bool = isinstance(value, bool) and kind is not bool
    if value is not None and (not isinstance(value, kind) or wrong_bool):
        field = f"{path}.{name}" if path else name
        raise InvalidRequest(f"{field} must be {words}", field=field)
    return value


def _integer(
    body: _Body, name: str, smallest: int = -_MAX_INT32, largest: int = _MAX_INT32
) -> int | None:
    value: int | None = _typed(body, name, int, "an integer")
    if value is not None and not smallest <= value <= largest:
        raise InvalidRequest(f"{name} is out of range", field=name)
    return value


def _is_uint32(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _MAX_INT32 and math.isfinite(value)
