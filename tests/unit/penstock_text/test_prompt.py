"""Prompts of every kind become token ids."""

import asyncio
import threading
from pathlib import Path

import pytest

from penstock.common.v1 import chat_pb2, tokens_pb2
from penstock.inference.v1.generate_pb2 import GenerateRequest
from penstock_core.blocks import pack_tokens
from penstock_core.errors import InvalidRequest
from penstock_testing.engines.models import write_byte_tokenizer
from penstock_text import prompt
from penstock_text.chat import ChatTemplate
from penstock_text.prompt import encode_prompt
from penstock_text.tokenizer import Tokenizer


@pytest.fixture
def model(tmp_path: Path) -> tuple[Tokenizer, ChatTemplate | None]:
    write_byte_tokenizer(tmp_path)
    return Tokenizer.load(tmp_path), ChatTemplate.load(tmp_path)


async def test_tokens_pass_unchanged(model: tuple[Tokenizer, ChatTemplate]) -> None:
    request = GenerateRequest(tokens=tokens_pb2.TokenIds(ids=pack_tokens([5, 6, 7])))

    assert await encode_prompt(request, *model) == [5, 6, 7]


async def test_text_is_tokenized(model: tuple[Tokenizer, ChatTemplate]) -> None:
    assert await encode_prompt(GenerateRequest(text="né"), *model) == list("né".encode())


async def test_chats_are_rendered_first(model: tuple[Tokenizer, ChatTemplate]) -> None:
    chat = chat_pb2.ChatPrompt(messages=[chat_pb2.ChatMessage(role="user", content="Hi")])

    ids = await encode_prompt(GenerateRequest(chat=chat), *model)

    assert bytes(ids) == b"<user>Hi\n<assistant>"


async def test_a_chat_needs_a_template(model: tuple[Tokenizer, ChatTemplate]) -> None:
    chat = chat_pb2.ChatPrompt(messages=[chat_pb2.ChatMessage(role="user", content="Hi")])

    with pytest.raises(InvalidRequest, match="no chat template") as caught:
        await encode_prompt(GenerateRequest(chat=chat), model[0], None)

    assert caught.value.field == "chat.messages"


@pytest.mark.parametrize("kind", ["text", "chat"])
async def test_long_prompts_leave_the_event_loop_alone(
    model: tuple[Tokenizer, ChatTemplate], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    threads: list[str] = []
    encode = Tokenizer.encode

    def spy(self: Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
        threads.append(threading.current_thread().name)
        return encode(self, text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", spy)
    text = "word " * 4000
    turn = chat_pb2.ChatMessage(role="user", content=text)
    request = GenerateRequest(text=text)
    if kind == "chat":
        request = GenerateRequest(chat=chat_pb2.ChatPrompt(messages=[turn]))

    ids = await asyncio.wait_for(encode_prompt(request, *model), timeout=30)

    assert len(ids) >= len(text)
    assert threads != [threading.main_thread().name]


async def test_texts_beyond_any_context_are_refused_unread(
    model: tuple[Tokenizer, ChatTemplate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "MAX_PROMPT_CHARS", 10)

    with pytest.raises(InvalidRequest, match="11 characters; a prompt has at most 10"):
        await encode_prompt(GenerateRequest(text="x" * 11), *model)
