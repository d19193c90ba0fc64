"""Structured answers and tool calls as the official SDK asks for them, from a real engine's tokens.

The checkpoint is random: only the constraint makes an answer well formed.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_engine.native.structured.vocabulary import Vocabulary
from penstock_testing.engines.checkpoints import write_checkpoint
from penstock_testing.engines.models import BYTE_VOCAB_SIZE, write_byte_tokenizer
from penstock_testing.servers.cluster import running_cluster
from penstock_testing.servers.gateway import running_gateway
from penstock_text.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "who is it?"}]
ASK: dict[str, Any] = {"model": "fake", "messages": HELLO, "max_tokens": 300, "seed": 3}


class Person(BaseModel):
    """What is asked for."""

    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=150)


WEATHER = {
    "type": "object",
    "properties": {"unit": {"$ref": "#/$defs/unit"}, "days": {"type": "integer", "maximum": 9}},
    "required": ["unit", "days"],
    "additionalProperties": False,
    "$defs": {"unit": {"enum": ["C", "F"]}},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "hang_up"}},
]
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_byte_tokenizer(tmp_path_factory.mktemp("structured"))
    return write_checkpoint(path, {"vocab_size": BYTE_VOCAB_SIZE, "max_position_embeddings": 1024})


@pytest.fixture
async def client(model: Path) -> AsyncIterator[Any]:
    tokenizer = Tokenizer.load(model)
    tokens = [tokenizer.text_bytes(token) for token in range(tokenizer.vocab_size)]
    settings = NativeSettings(model, device="cpu", kv_blocks=128, threads=1)
    async with (
        running_cluster(NativeEngine(settings, Vocabulary(tokens)), lease_secret="s") as cluster,
        running_gateway(cluster.router.endpoint) as gateway,
        AsyncOpenAI(base_url=gateway.api, api_key="any", max_retries=0) as client,
    ):
        yield client


async def test_a_parsed_answer_is_the_model_that_was_asked_for(client: Any) -> None:
    answer = await client.chat.completions.parse(response_format=Person, **ASK)

    assert isinstance(answer.choices[0].message.parsed, Person)
    assert answer.choices[0].finish_reason == "stop"


async def test_a_json_object_streams_to_text_that_parses(client: Any) -> None:
    sampling = {"temperature": 0, "logit_bias": {str(ord("}")): 30}}
    stream = await client.chat.completions.create(
        response_format={"type": "json_object"}, stream=True, **ASK, **sampling
    )
    chunks = [chunk.choices[0] async for chunk in stream]

    assert isinstance(json.loads("".join(c.delta.content or "" for c in chunks)), dict)
    assert chunks[-1].finish_reason == "stop"


async def test_an_answer_that_ran_out_of_tokens_says_so(client: Any) -> None:
    form = {
        "type": "json_schema",
        "json_schema": {"name": "p", "schema": Person.model_json_schema()},
    }
    answer = await client.chat.completions.create(response_format=form, **ASK | {"max_tokens": 3})

    assert answer.choices[0].finish_reason == "length"


async def test_a_schema_that_cannot_be_held_is_refused(client: Any) -> None:
    schema = {"type": "array", "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        await client.chat.completions.create(response_format=form, **ASK)

    assert caught.value.param == "response_format"


@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_a_forced_tool_call_names_a_tool_and_fits_its_parameters(
    client: Any, choice: object
) -> None:
    answer = await client.chat.completions.create(tools=TOOLS, tool_choice=choice, n=4, **ASK)

    for made in answer.choices:
        assert made.finish_reason == "tool_calls"
        assert made.message.content is None
        (call,) = made.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "weather" or (choice == "required" and arguments == {})
        if call.function.name == "weather":
            assert arguments["unit"] in ("C", "F")
            assert arguments["days"] <= 9


async def test_a_streamed_tool_call_is_the_one_that_comes_whole(client: Any) -> None:
    asked = {"tools": TOOLS, "tool_choice": NAMED, **ASK}
    whole = (await client.chat.completions.create(**asked)).choices[0].message.tool_calls[0]
    stream = await client.chat.completions.create(stream=True, **asked)
    chunks = [chunk.choices[0] async for chunk in stream]

    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or ()]
    assert pieces[0].function.name == whole.function.name == "weather"
    assert "".join(piece.function.arguments for piece in pieces) == whole.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"


async def test_a_free_choice_of_tools_answers_in_text(client: Any) -> None:
    answer = await client.chat.completions.create(tools=TOOLS, **ASK | {"max_tokens": 5})

    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "length"


async def test_unknown_tools_cannot_be_forced(client: Any) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(tools=TOOLS, tool_choice=other, **ASK)

    assert caught.value.param == "tool_choice"
