"""The official SDK through gateway, router and worker: real processes' code, a fake engine."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import Cluster, running_cluster
from penstock_testing.servers.gateway import running_gateway

MODEL = "fake"
HELLO = [{"role": "user", "content": "hello"}]
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 12}


@dataclass(frozen=True, slots=True)
class Stack:
    """A cluster and an SDK's client before its gateway."""

    cluster: Cluster
    client: Any


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with (
        running_cluster(FakeEngine(), lease_secret="secret") as cluster,
        running_gateway(cluster.router.endpoint) as gateway,
        AsyncOpenAI(base_url=gateway.api, api_key="any", max_retries=0) as client,
    ):
        yield Stack(cluster, client)


async def test_a_chat_streams_what_it_answers_whole(stack: Stack) -> None:
    whole = await stack.client.chat.completions.create(messages=HELLO, **GREEDY)
    stream = await stack.client.chat.completions.create(messages=HELLO, stream=True, **GREEDY)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert len(whole.choices[0].message.content) == 12
    assert "".join(pieces) == whole.choices[0].message.content
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"


async def test_the_second_of_two_equal_prompts_reports_cached_tokens(stack: Stack) -> None:
    prompt = "import os\n" * 20
    first = await stack.client.completions.create(prompt=prompt, **GREEDY)
    second = await stack.client.completions.create(prompt=prompt, **GREEDY)

    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens == 192
    assert second.choices[0].text == first.choices[0].text


async def test_the_answer_says_which_decision_can_be_explained(stack: Stack) -> None:
    answer = await stack.client.completions.create(prompt="x", **GREEDY)

    extension = answer.model_extra["penstock"]
    explained = await stack.cluster.explain(extension["request_id"])
    assert extension["worker"] == "worker-1"
    assert extension["decision_id"] == explained.decision.decision_id
    assert extension["ttft_s"] > 0


async def test_a_stop_string_ends_the_text_before_it(stack: Stack) -> None:
    whole = await stack.client.completions.create(prompt="x", **GREEDY)
    text = whole.choices[0].text

    stopped = await stack.client.completions.create(prompt="x", stop=[text[5:8]], **GREEDY)

    assert stopped.choices[0].text == text[: text.index(text[5:8])]
    assert stopped.choices[0].finish_reason == "stop"


async def test_samples_and_logprobs_come_for_every_choice(stack: Stack) -> None:
    answer = await stack.client.completions.create(
        model=MODEL, prompt=["a", "b"], n=2, max_tokens=3, logprobs=2, seed=5, echo=True
    )

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        assert len(choice.logprobs.tokens) == 3
        assert choice.logprobs.text_offset == [1, 2, 3]
        assert choice.text[0] == ("a" if choice.index < 2 else "b")
        assert "".join(choice.logprobs.tokens) == choice.text[1:]


async def test_models_are_what_the_workers_serve(stack: Stack) -> None:
    assert [model.id async for model in stack.client.models.list()] == [MODEL]


async def test_a_prompt_beyond_the_context_tells_both_numbers(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stack.client.completions.create(model=MODEL, prompt="x" * 100, max_tokens=4090)

    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "max_tokens"
    assert "4090" in caught.value.message
    assert "4096" in caught.value.message


async def test_a_megabyte_of_prompt_is_a_400(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stack.client.completions.create(model=MODEL, prompt="x" * 1_000_000)

    assert caught.value.param == "prompt"


async def test_an_unknown_model_is_a_404(stack: Stack) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await stack.client.chat.completions.create(model="gpt-9", messages=HELLO)

    assert caught.value.code == "model_not_found"


async def test_a_token_outside_the_vocabulary_is_a_400(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stack.client.completions.create(model=MODEL, prompt=[999_999])

    assert caught.value.param == "prompt"


async def test_what_the_engine_cannot_do_is_a_400_and_no_crash(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stack.client.chat.completions.create(
            messages=HELLO, response_format={"type": "json_object"}, **GREEDY
        )

    assert caught.value.code == "not_supported"
    assert (await stack.client.chat.completions.create(messages=HELLO, **GREEDY)).choices


async def test_a_client_that_leaves_frees_the_engine(stack: Stack) -> None:
    engine = stack.cluster.engine("worker-1")
    engine.hold()
    engine.allow(3)
    stream = await stack.client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=500, stream=True
    )
    await anext(stream)
    assert engine.state().running == 1

    await stream.close()

    await stack.cluster.until(lambda: engine.state().running == 0)
    assert engine.state().waiting == 0
