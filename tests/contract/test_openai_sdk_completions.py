"""The official SDK completes text and lists models through a real gateway."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError

from penstock_core.blocks import unpack_tokens
from penstock_testing.servers.gateway import running_gateway
from penstock_testing.servers.scripted_router import CACHED_TOKENS, MODEL, Script, running_router

TEXT = "The quick brown fox"


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


async def test_sample_j_of_prompt_i_is_choice_i_n_plus_j(client: Any, script: Script) -> None:
    answer = await client.completions.create(model=MODEL, prompt=["a", "b"], n=2, echo=True)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["a" + TEXT] * 2 + ["b" + TEXT] * 2
    assert answer.usage.completion_tokens == 16
    assert answer.usage.prompt_tokens_details.cached_tokens == 2 * CACHED_TOKENS
    assert len({request.request_id for request in script.requests}) == 2
    assert len(answer.model_extra["penstock"]["prompts"]) == 2


async def test_a_stream_of_several_prompts_carries_every_choice(client: Any) -> None:
    prompts = [str(number) for number in range(40)]
    texts = dict.fromkeys(range(40), "")
    reasons = {}

    stream = await client.completions.create(model=MODEL, prompt=prompts, stream=True, echo=True)
    async for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason

    assert texts == {number: f"{number}{TEXT}" for number in range(40)}
    assert set(reasons.values()) == {"stop"}


@pytest.mark.parametrize(
    ("prompt", "wanted"), [([1, 2, 3], [[1, 2, 3]]), ([[1], [2, 3]], [[1], [2, 3]])]
)
async def test_token_ids_are_prompts(
    client: Any, script: Script, prompt: list[int], wanted: list[list[int]]
) -> None:
    await client.completions.create(model=MODEL, prompt=prompt)

    sent = sorted(unpack_tokens(request.tokens.ids) for request in script.requests)
    assert sent == wanted


async def test_at_most_max_tokens_come_and_the_reason_says_so(client: Any) -> None:
    answer = await client.completions.create(model=MODEL, prompt="x", max_tokens=2)

    assert answer.choices[0].text == "The quick"
    assert answer.choices[0].finish_reason == "length"


async def test_openais_default_of_sixteen_tokens_holds(client: Any, script: Script) -> None:
    await client.completions.create(model=MODEL, prompt="x")

    assert script.requests[0].stop.max_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
async def test_text_offsets_count_characters_of_the_echoed_prompt_too(
    client: Any, script: Script, stream: bool
) -> None:
    script.pieces = (b"caf", b"\xc3", b"\xa9", b" au")

    answer = await client.completions.create(
        model=MODEL, prompt="Un ", echo=True, logprobs=2, stream=stream
    )
    offsets: list[int] = []
    if stream:
        async for chunk in answer:
            if chunk.choices[0].logprobs is not None:
                offsets += chunk.choices[0].logprobs.text_offset
    else:
        offsets = answer.choices[0].logprobs.text_offset
        assert answer.choices[0].logprobs.top_logprobs[0] == {"caf": -0.5, "alt1": -1.5}

    assert offsets == [3, 6, 7, 7]


async def test_a_stream_carries_usage_if_asked(client: Any) -> None:
    stream = await client.completions.create(
        model=MODEL, prompt="x", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == CACHED_TOKENS
    assert chunks[-1].model_extra["penstock"]["tpot_s"] == pytest.approx(0.002)


async def test_extensions_reach_the_router(client: Any, script: Script) -> None:
    await client.completions.create(
        model=MODEL,
        prompt="x",
        best_of=3,
        presence_penalty=1.5,
        extra_body={"repetition_penalty": 1.25, "min_tokens": 2, "ignore_eos": True},
    )

    sampling = script.requests[0].sampling
    assert (sampling.best_of, sampling.presence_penalty) == (3, 1.5)
    assert (sampling.repetition_penalty, sampling.ignore_eos) == (1.25, True)
    assert script.requests[0].stop.min_tokens == 2


async def test_models_are_listed_and_found_even_with_a_slash(client: Any) -> None:
    assert [model.id async for model in client.models.list()] == ["org/hub-model", MODEL]
    assert (await client.models.retrieve("org/hub-model")).id == "org/hub-model"
    with pytest.raises(NotFoundError) as caught:
        await client.models.retrieve("absent")
    assert caught.value.code == "model_not_found"
