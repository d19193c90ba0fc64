"""The two answer shapes, chat completion and text completion, whole and in chunks. Pure."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from penstock.common.v1 import tokens_pb2
from penstock_openai.answer import Choice
from penstock_openai.json_object import Json
from penstock_openai.logprobs import chat_logprobs, completion_logprobs
from penstock_openai.tool_calls import CallReader

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

    def piece(self, choice: Choice, text: str, tokens: Tokens) -> Json:
        """A chunk's new text; the last one of an ended choice has none."""
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
            "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
            "logprobs": chat_logprobs(choice.tokens) if self._logprobs else None,
        }

    def opening(self) -> Json | None:
        """The role, which comes once."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def piece(self, choice: Choice, text: str, tokens: Tokens) -> Json:
        """New text; empty in the last chunk."""
        return {
            "delta": {"content": text} if text or tokens else {},
            "logprobs": chat_logprobs(tokens) if tokens else None,
        }

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
            message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [made]}
            rendered["message"] = message
        return rendered

    def opening(self) -> Json | None:
        """The role, which comes once."""
        return {"delta": {"role": "assistant", "content": None}, "logprobs": None}

    def piece(self, choice: Choice, text: str, tokens: Tokens) -> Json:
        """Name and id once they are known, then the arguments as they come."""
        call = choice.call
        was_named = call.name is not None
        arguments = call.read(text)
        if choice.finish_reason is not None:
            arguments += call.end(is_whole=_is_whole(choice))
        delta: Json = {}
        if call.name is not None and not was_named:
            function = {"name": call.name, "arguments": arguments}
            made = {"index": 0, "id": call.id, "type": "function", "function": function}
            delta = {"tool_calls": [made]}
        elif arguments:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}
        return {"delta": delta, "logprobs": chat_logprobs(tokens) if tokens else None}

    def finish_reason(self, choice: Choice) -> str | None:
        """A whole call is told as such."""
        return "tool_calls" if _is_whole(choice) else choice.finish_reason


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

    def piece(self, choice: Choice, text: str, tokens: Tokens) -> Json:
        """New text; empty in the last chunk."""
        logprobs = completion_logprobs(tokens, choice.chars) if tokens else None
        return {"text": text, "logprobs": logprobs}

    def finish_reason(self, choice: Choice) -> str | None:
        """As the worker said."""
        return choice.finish_reason
