"""The two answer shapes, chat completion and text completion, whole and in chunks. Pure."""

from collections.abc import Sequence, Set
from typing import ClassVar, Protocol

from penstock.common.v1 import tokens_pb2
from penstock_openai.answer import Choice
from penstock_openai.json_object import Json
from penstock_openai.logprobs import chat_logprobs, completion_logprobs
from penstock_openai.tool_calls import CallReader
from penstock_openai.written_calls import Part, WrittenCall, WrittenCalls

Tokens = Sequence[tokens_pb2.TokenLogprob]


class Format(Protocol):
    """How choices look in one of OpenAI's endpoints."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def whole(self, choice: Choice) -> Json:
        """An ended choice with everything in it."""
        ...

    def opening(self) -> Json | None:
        """What the first chunk of a choice says before any text; None if there is no such chunk."""
        ...

    def pieces(self, choice: Choice, text: str, tokens: Tokens) -> list[Json]:
        """What chunks tell of new text or tokens; of an ended choice what is left, one at least."""
        ...

    def finish_reason(self, choice: Choice) -> str | None:
        """Why an ended choice ended."""
        ...


class ChatFormat:
    """``chat.completion``."""

    id_prefix: ClassVar[str] = "chatcmpl"
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"

    def __init__(self, *, logprobs: bool) -> None:
        self._logprobs = logprobs

    def whole(self, choice: Choice) -> Json:
        """An ended choice."""
        return {
            "message": _message("".join(choice.text)),
            "logprobs": chat_logprobs(choice.tokens) if self._logprobs else None,
        }

    def opening(self) -> Json | None:
        """The role, which comes once."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def pieces(self, choice: Choice, text: str, tokens: Tokens) -> list[Json]:
        """New text; empty in the last chunk."""
        return [_told({"content": text} if text or tokens else {}, tokens)]

    def finish_reason(self, choice: Choice) -> str | None:
        """As the worker said."""
        return choice.finish_reason


class ToolCallFormat(ChatFormat):
    """``chat.completion`` whose text is a forced tool call, which clients get as such.

    An output cut short before the tool's name has none; a whole answer then shows its text.
    """

    def whole(self, choice: Choice) -> Json:
        """An ended choice with the one call it made."""
        rendered = super().whole(choice)
        call = CallReader()
        arguments = call.read("".join(choice.text)) + call.end(is_whole=_is_whole(choice))
        if call.name is not None:
            function = {"name": call.name, "arguments": arguments}
            made = {"id": call.id, "type": "function", "function": function}
            rendered["message"] = _message(None) | {"tool_calls": [made]}
        return rendered

    def opening(self) -> Json | None:
        """The role, which comes once."""
        return {"delta": {"role": "assistant", "content": None}, "logprobs": None}

    def pieces(self, choice: Choice, text: str, tokens: Tokens) -> list[Json]:
        """Name and id once they are known, then the arguments as they come."""
        call = choice.forced = choice.forced or CallReader()
        was_named = call.name is not None
        arguments = call.read(text)
        if choice.finish_reason is not None:
            arguments += call.end(is_whole=_is_whole(choice))
        delta: Json = {}
        if call.name is not None and not was_named:
            delta = _named(0, call.id, call.name, arguments)
        elif arguments:
            delta = _arguments(0, arguments)
        return [_told(delta, tokens)]

    def finish_reason(self, choice: Choice) -> str | None:
        """A whole call is told as such."""
        return "tool_calls" if _is_whole(choice) else choice.finish_reason


class WrittenCallFormat(ChatFormat):
    """``chat.completion`` of a model that was offered tools and may write calls or text."""

    def __init__(self, *, logprobs: bool, tools: Set[str], is_parallel: bool) -> None:
        """Args: ``tools`` by name; unless ``is_parallel``, what follows a first call is text."""
        super().__init__(logprobs=logprobs)
        self._tools = tools
        self._most = None if is_parallel else 1

    def whole(self, choice: Choice) -> Json:
        """An ended choice: its text, if it has any or nothing else, and its calls."""
        calls = choice.written = self._reader()
        parts = [*calls.read("".join(choice.text)), *calls.end()]
        made = [_made(part) for part in parts if isinstance(part, WrittenCall)]
        text = "".join(part for part in parts if isinstance(part, str))
        message = _message(text or None) | {"tool_calls": made} if made else _message(text)
        return super().whole(choice) | {"message": message}

    def opening(self) -> Json | None:
        """The role, which comes once."""
        return {"delta": {"role": "assistant", "content": None}, "logprobs": None}

    def pieces(self, choice: Choice, text: str, tokens: Tokens) -> list[Json]:
        """What is certain of the text; a call, once it is whole, by name and then by arguments."""
        calls = choice.written = choice.written or self._reader()
        index = calls.count
        parts = calls.read(text)
        if choice.finish_reason is not None:
            parts += calls.end()
        deltas: list[Json] = []
        for part in parts:
            deltas += _deltas(part, index)
            index += isinstance(part, WrittenCall)
        if choice.finish_reason is not None or (tokens and not deltas):
            deltas.append({})
        return [_told(delta, () if i else tokens) for i, delta in enumerate(deltas)]

    def finish_reason(self, choice: Choice) -> str | None:
        """As the worker said, but that a model which made calls did not just stop."""
        has_calls = choice.written is not None and choice.written.count > 0
        stopped = choice.finish_reason == "stop"
        return "tool_calls" if has_calls and stopped else choice.finish_reason

    def _reader(self) -> WrittenCalls:
        return WrittenCalls(self._tools, most=self._most)


def _message(content: str | None) -> Json:
    return {"role": "assistant", "content": content, "refusal": None}


def _made(call: WrittenCall) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _deltas(part: Part, index: int) -> list[Json]:
    if isinstance(part, str):
        return [{"content": part}]
    return [_named(index, part.id, part.name, ""), _arguments(index, part.arguments)]


def _named(index: int, call_id: str, name: str, arguments: str) -> Json:
    function = {"name": name, "arguments": arguments}
    made = {"index": index, "id": call_id, "type": "function", "function": function}
    return {"tool_calls": [made]}


def _arguments(index: int, arguments: str) -> Json:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


def _told(delta: Json, tokens: Tokens) -> Json:
    return {"delta": delta, "logprobs": chat_logprobs(tokens) if tokens else None}


def _is_whole(choice: Choice) -> bool:
    return choice.finish_reason in ("stop", "tool_calls") and choice.matched_stop is None


class CompletionFormat:
    """``text_completion``."""

    id_prefix: ClassVar[str] = "cmpl"
    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"

    def __init__(self, *, logprobs: bool) -> None:
        self._logprobs = logprobs

    def whole(self, choice: Choice) -> Json:
        """An ended choice."""
        logprobs = completion_logprobs(choice.tokens, choice.echo_chars)
        return {
            "text": "".join(choice.text),
            "logprobs": logprobs if self._logprobs else None,
        }

    def opening(self) -> Json | None:
        """Completions have no role."""
        return None

    def pieces(self, choice: Choice, text: str, tokens: Tokens) -> list[Json]:
        """New text; empty in the last chunk."""
        logprobs = completion_logprobs(tokens, choice.chars) if tokens else None
        return [{"text": text, "logprobs": logprobs}]

    def finish_reason(self, choice: Choice) -> str | None:
        """As the worker said."""
        return choice.finish_reason
