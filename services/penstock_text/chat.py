"""Renders a conversation with the model's own chat template, in Jinja's sandbox.

Templates follow Hugging Face's conventions. They come with the model and may be hostile or broken,
and callers choose what is put in: the sandbox forbids attribute tricks, the output is bounded, and
each failure is the caller's InvalidRequest.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import NoReturn, Self

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls  # noqa: N812 - it is a class
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.common.v1 import chat_pb2
from penstock_core.errors import InvalidRequest, NotSupported
from penstock_text.files import JsonObject, read_object, token_text

MAX_RENDERED_CHARS = 4 * 1024 * 1024
_FIELD = "chat.messages"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatTemplate:
    """A model's templates: ``default`` and, if it has one of its own, the one for tools."""

    def __init__(self, templates: Mapping[str, Template], tokens: Mapping[str, str]) -> None:
        self._templates = templates
        self._tokens = tokens

    @classmethod
    def load(cls, path: Path, now: Callable[[], datetime] = datetime.now) -> Self | None:
        """Read a model directory; None if the model has no chat template.

        Raises:
            NotSupported: a template does not compile.
        """
        config = read_object(path / "tokenizer_config.json")
        sources = _sources(path, config)
        if not sources:
            return None
        environment = _environment(now)
        try:
            compiled = {name: environment.from_string(text) for name, text in sources.items()}
        except TemplateError as error:
            raise NotSupported(f"the chat template in {path} does not compile: {error}") from error
        tokens = {name: token_text(config.get(name)) for name in _SPECIAL_TOKENS}
        return cls(compiled, {name: text for name, text in tokens.items() if text})

    def render(self, chat: chat_pb2.ChatPrompt) -> str:
        """The prompt's text, special tokens included.

        Raises:
            InvalidRequest: the template refuses the conversation or cannot render it.
        """
        template = self._template(has_tools=bool(chat.tools))
        variables = {**self._tokens, **_variables(chat)}
        try:
            return _bounded(template.generate(variables))
        # Whatever goes wrong inside a template is about this conversation, not about the server.
        except Exception as error:
            raise InvalidRequest(
                f"the model's chat template cannot render this conversation: {error}", field=_FIELD
            ) from error

    def _template(self, *, has_tools: bool) -> Template:
        if has_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        return self._templates.get("default") or next(iter(self._templates.values()))


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}`` marks the assistant's part for training; it renders as is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's convention

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body, without the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _bounded(parts: Iterable[str]) -> str:
    kept: list[str] = []
    size = 0
    for part in parts:
        kept.append(part)
        size += len(part)
        if size > MAX_RENDERED_CHARS:
            raise TemplateError(f"it renders more than {MAX_RENDERED_CHARS} characters")
    return "".join(kept)


def _sources(path: Path, config: JsonObject) -> dict[str, str]:
    file = path / "chat_template.jinja"
    if file.is_file():
        return {"default": file.read_text(encoding="utf-8")}
    value = config.get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    if not isinstance(value, list):
        return {}
    return {str(entry["name"]): str(entry["template"]) for entry in value}


def _environment(now: Callable[[], datetime]) -> Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[LoopControls, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    return environment


def _to_json(
    value: object, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes for HTML, which would reach the model.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _variables(chat: chat_pb2.ChatPrompt) -> dict[str, object]:
    own: dict[str, object] = {
        "messages": [_message(m, f"{_FIELD}[{i}]") for i, m in enumerate(chat.messages)],
        "tools": [_tool(t, f"chat.tools[{i}]") for i, t in enumerate(chat.tools)] or None,
        "documents": None,
        "add_generation_prompt": (
            chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
        ),
    }
    if chat.tool_choice:
        own["tool_choice"] = chat.tool_choice
    # The conversation itself cannot be replaced by a variable of the same name.
    return {**_object(chat.template_variables_json, "chat.template_variables_json"), **own}


def _message(message: chat_pb2.ChatMessage, field: str) -> dict[str, object]:
    turn: dict[str, object] = {"role": message.role, "content": message.content}
    if message.name:
        turn["name"] = message.name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": _object(
                        call.arguments_json, f"{field}.tool_calls[{i}].arguments_json"
                    ),
                },
            }
            for i, call in enumerate(message.tool_calls)
        ]
    return turn


def _tool(tool: chat_pb2.Tool, field: str) -> dict[str, object]:
    function: dict[str, object] = {"name": tool.name, "description": tool.description}
    function["parameters"] = _object(tool.parameters_json, f"{field}.parameters_json")
    return {"type": "function", "function": function}


def _object(text: str, field: str) -> dict[str, object]:
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field} is no JSON: {error}", field=field) from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field} must be a JSON object", field=field)
    return value
