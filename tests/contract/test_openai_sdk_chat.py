"""The official SDK chats through a real gateway."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import APIError, AsyncOpenAI

from penstock.common.v1 import sampling_pb2
from penstock_core.errors import WorkerLost
from penstock_testing.servers.gateway import running_gateway
from penstock_testing.servers.scripted_router import CACHED_TOKENS, MODEL, Script, running_router

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def client(script: Script) -> AsyncIterator[Any]:
    async with (
        running_router(script) as router,
        running_gateway(router) as gateway,
        AsyncOpenAI(base_url=gateway.api, api_key="any", max_retries=0) as client,
    ):
        yield client


async def test_an_answer_comes_whole_with_usage_and_timing(client: Any) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HELLO)

    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == "The quick brown fox"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4
    assert answer.usage.prompt_tokens_details.cached_tokens == CACHED_TOKENS
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens == 2
    assert answer.usage.completion_tokens_details.rejected_prediction_tokens == 1
    extension = answer.model_extra["penstock"]
    assert (extension["worker"], extension["decision_id"]) == ("worker-1", "dec_1")
    assert extension["ttft_s"] == pytest.approx(0.01)


async def test_a_stream_gives_the_role_once_then_text_then_the_reason(client: Any) -> None:
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]

    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [d.role for d in deltas] == ["assistant", None, None, None, None, None]
    assert "".join(d.content or "" for d in deltas) == "The quick brown fox"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 5 + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_stream_ends_with_usage_if_asked(client: Any) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-1].model_extra["penstock"]["worker"] == "worker-1"


async def test_samples_stream_side_by_side_under_their_index(client: Any) -> None:
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, n=2, stream=True)
    texts = {0: "", 1: ""}
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""

    assert texts == {0: "The quick brown fox", 1: "The quick brown fox"}


async def test_logprobs_come_with_bytes_and_alternatives(client: Any, script: Script) -> None:
    script.pieces = (b"caf", b"\xc3", b"\xa9")

    answer = await client.chat.completions.create(
        model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2
    )

    assert answer.choices[0].message.content == "café"
    content = answer.choices[0].logprobs.content
    assert [entry.bytes for entry in content] == [[99, 97, 102], [0xC3], [0xA9]]
    assert [entry.token for entry in content] == ["caf", "bytes:\\xc3", "bytes:\\xa9"]
    assert [len(entry.top_logprobs) for entry in content] == [2, 2, 2]


async def test_without_logprobs_there_are_none(client: Any) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HELLO)

    assert answer.choices[0].logprobs is None


async def test_parameters_reach_the_router(client: Any, script: Script) -> None:
    await client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
            *HELLO,
        ],
        max_completion_tokens=7,
        temperature=0.5,
        seed=-1,
        stop=["END"],
        logit_bias={"5": -100},
        store=True,
        metadata={"a": "b"},
        user="somebody",
        extra_body={"top_k": 3, "min_p": 0.1, "ignore_eos": True, "stop_token_ids": [9]},
        extra_headers={"x-penstock-priority": "batch"},
    )  # fmt: skip

    sent = script.requests[0]
    assert [(m.role, m.content) for m in sent.chat.messages] == [
        ("system", "be brief"),
        ("user", "hello"),
    ]
    assert sent.stop.max_tokens == 7
    assert list(sent.stop.strings) == ["END"]
    assert list(sent.stop.token_ids) == [9]
    assert sent.sampling.temperature == 0.5
    assert sent.sampling.seed == 2**64 - 1
    assert dict(sent.sampling.logit_bias) == {5: -100}
    assert (sent.sampling.top_k, sent.sampling.ignore_eos) == (3, True)
    assert sent.priority == sampling_pb2.PRIORITY_CLASS_BATCH


async def test_tools_and_response_format_reach_the_router(client: Any, script: Script) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    await client.chat.completions.create(
        model=MODEL,
        messages=[
            *HELLO,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": "{}"},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        tools=[TOOL],
        tool_choice="auto",
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    )

    sent = script.requests[0]
    assert sent.chat.tools[0].name == "weather"
    assert '"city"' in sent.chat.tools[0].parameters_json
    assert sent.chat.tool_choice == "auto"
    assert sent.chat.messages[1].tool_calls[0].id == "call_1"
    assert sent.chat.messages[2].tool_call_id == "call_1"
    assert '"integer"' in sent.constraint.json_schema


async def test_a_matched_stop_string_is_told(client: Any) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HELLO, stop="END")

    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_extra["stop_reason"] == "END"


async def test_a_stream_that_breaks_after_its_first_token_ends_in_an_error_event(
    client: Any, script: Script
) -> None:
    script.error, script.error_at = WorkerLost("the worker is gone"), 2

    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    received = [await anext(stream) for _ in range(3)]
    with pytest.raises(APIError, match="the worker is gone") as caught:
        await anext(stream)

    assert [chunk.choices[0].delta.content for chunk in received] == ["", "The", " quick"]
    assert caught.value.code == "worker_lost"
