"""The two answer shapes, chat completion and text completion, whole and in chunks. Pure."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from penstock.common.v1 import tokens_pb2
from penstock_openai.answer import Choice
from penstock_openai.json_object import Json
from penstock_openai.logprobs import chat_logprobs, completion_logprobs

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

    def piece(self, text: str, tokens: Tokens, offset: int) -> Json:
        """A chunk's new text; ``offset`` counts the characters before its first token."""
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

    def piece(self, text: str, tokens: Tokens, offset: int) -> Json:
        """New text; empty in the last chunk."""
        return {
            "delta": {"content": text} if text or tokens else {},
            "logprobs": chat_logprobs(tokens) if tokens else None,
        }


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

    def piece(self, text: str, tokens: Tokens, offset: int) -> Json:
        """New text; empty in the last chunk."""
        return {"text": text, "logprobs": completion_logprobs(tokens, offset) if tokens else None}
