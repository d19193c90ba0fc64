"""Tools as agents use them: the official SDK, a gateway, a router, and a worker that says a script."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from penstock_engine.api import EngineRequest
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.engines.models import write_byte_tokenizer
from penstock_testing.servers.cluster import running_cluster
from penstock_testing.servers.gateway import running_gateway

ULM, BONN = '{"city": "Ulm"}', '{"city": "Bonn", "days": 2}'
LLAMA = f'{{"name": "weather", "parameters": {ULM}}}'
THOUGHT = "<think>\nUlm first.\n</think>\n\nI look."
QWEN = (
    f'{THOUGHT}\n<tool_call>\n{{"name": "weather", "arguments": {ULM}}}\n</tool_call>\n'
    f'<tool_call>\n{{"name": "weather", "arguments": {BONN}}}\n</tool_call>'
)
MISTRAL = f'[{{"name": "weather", "arguments": {ULM}}}, {{"name": "weather", "arguments": {BONN}}}]'
# As Qwen's: calls are rendered the way the model writes them.
TEMPLATE = """\
{%- for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}
{%- for m in messages %}<{{ m.role }}>{{ m.content }}
{%- for call in m.tool_calls or [] %}

<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<end>
{% endfor %}<assistant>"""
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
USER = {"role": "user", "content": "Ulm?"}
ASK: dict[str, Any] = {"model": "fake", "messages": [USER], "tools": [WEATHER], "max_tokens": 900}


class Said:
    """What each sample of the next request says."""

    def __init__(self) -> None:
        self.samples: Sequence[str] = ("",)
        self.engine = FakeEngine(FakeConfig(max_batch=4), script=self._script)

    def _script(self, request: EngineRequest, choice: int) -> Sequence[int]:
        return self.samples[choice % len(self.samples)].encode()

    @property
    def last_prompt(self) -> str:
        """What the template made of the last request."""
        return bytes(self.engine.requests[-1].prompt).decode()


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
async def client(said: Said, tmp_path: Path) -> AsyncIterator[Any]:
    model = write_byte_tokenizer(tmp_path / "model", chat_template=TEMPLATE)
    async with (
        running_cluster(said.engine, lease_secret="s", model=model) as cluster,
        running_gateway(cluster.router.endpoint) as gateway,
        AsyncOpenAI(base_url=gateway.api, api_key="any", max_retries=0) as client,
    ):
        yield client


def made(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]


@pytest.mark.parametrize(
    ("output", "content", "calls"),
    [
        (QWEN, THOUGHT, [("weather", ULM), ("weather", BONN)]),
        (LLAMA, None, [("weather", ULM)]),
        (MISTRAL, None, [("weather", ULM), ("weather", BONN)]),
    ],
)
async def test_calls_in_the_models_own_notation_are_tool_calls_whole_and_streamed(
    client: Any, said: Said, output: str, content: str | None, calls: list[tuple[str, str]]
) -> None:
    said.samples = [output]

    whole = (await client.chat.completions.create(tool_choice="auto", **ASK)).choices[0]
    async with client.chat.completions.stream(**ASK) as stream:
        events = [event async for event in stream]
        put_together = (await stream.get_final_completion()).choices[0]

    for choice in (whole, put_together):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == content
        assert made(choice.message) == calls
        assert len({call.id for call in choice.message.tool_calls}) == len(calls)
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.name, event.arguments) for event in done] == calls


async def test_text_streams_while_it_is_none_of_a_call(client: Any, said: Said) -> None:
    text, early = "a <b> and {c} [1]", "a <b> and {c}"
    said.samples = [text]
    said.engine.hold()
    said.engine.allow(1 + len(early))  # a prefill, and a step a character

    told = ""
    stream = await client.chat.completions.create(stream=True, **ASK)
    async with asyncio.timeout(10):
        async for chunk in stream:
            told += chunk.choices[0].delta.content or ""
            if told == early:
                said.engine.release()

    assert told == text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_of_no_tool_or_without_its_end_is_the_models_text(
    client: Any, said: Said, stream: bool
) -> None:
    said.samples = ['{"name": "stocks", "parameters": {}}', QWEN]
    asked = {**ASK, "max_tokens": len(QWEN) - 20, "n": 2}

    if stream:
        async with client.chat.completions.stream(**asked) as streaming:
            async for _ in streaming:
                pass
            unknown, cut = streaming.current_completion_snapshot.choices
    else:
        unknown, cut = (await client.chat.completions.create(**asked)).choices

    assert (unknown.finish_reason, made(unknown.message)) == ("stop", [])
    assert unknown.message.content == said.samples[0]
    assert (cut.finish_reason, made(cut.message)) == ("length", [("weather", ULM)])
    second = QWEN.index("</tool_call>") + len("</tool_call>")
    assert cut.message.content == THOUGHT + QWEN[second : len(QWEN) - 20]


async def test_one_call_is_made_where_parallel_calls_are_not_wanted(
    client: Any, said: Said
) -> None:
    said.samples = [QWEN]

    answer = await client.chat.completions.create(parallel_tool_calls=False, **ASK)

    assert made(answer.choices[0].message) == [("weather", ULM)]


async def test_calls_stay_text_where_none_may_be_made(client: Any, said: Said) -> None:
    said.samples = [QWEN]

    answer = await client.chat.completions.create(tool_choice="none", **ASK)

    assert answer.choices[0].message.content == QWEN
    assert answer.choices[0].finish_reason == "stop"


async def test_logprobs_come_with_calls(client: Any, said: Said) -> None:
    said.samples = [QWEN]

    whole = await client.chat.completions.create(logprobs=True, **ASK)
    stream = await client.chat.completions.create(logprobs=True, stream=True, **ASK)
    told = [c.choices[0].logprobs async for c in stream if c.choices[0].logprobs is not None]

    tokens = [entry.token for entry in whole.choices[0].logprobs.content]
    assert "".join(tokens) == QWEN
    assert [entry.token for each in told for entry in each.content] == tokens


async def test_an_agent_hands_calls_and_results_back_and_the_model_reads_what_it_wrote(
    client: Any, said: Said
) -> None:
    said.samples = [QWEN]
    asked = (await client.chat.completions.create(**ASK)).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": json.loads(call.function.arguments)["city"]}
        for call in asked.tool_calls
    ]  # fmt: skip

    said.samples = ["Sunny."]
    answer = await client.chat.completions.create(**ASK | {"messages": [USER, asked, *results]})

    assert answer.choices[0].message.content == "Sunny."
    assert answer.choices[0].finish_reason == "stop"
    assert f"<user>Ulm?<end>\n<assistant>{QWEN}<end>\n<tool>Ulm<end>" in said.last_prompt
