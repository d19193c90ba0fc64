"""Several samples of a prompt, ranked or voted on, through gateway and router to a fake engine."""

import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError

from penstock.common.v1 import sampling_pb2
from penstock_engine.api import EngineRequest
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import Cluster, ask, running_cluster
from penstock_testing.servers.gateway import running_gateway

ANSWERS = [
    '{"city": "Bonn", "why": 1}',
    '{"city": " bonn", "why": 2}',
    "{broken",
    '{"city": "Ulm"}',
    '{"city": "BONN"}',
]
TEXTS = ["Yes", "no", "yes ", "perhaps", "YES"]
MANY: dict[str, Any] = {"model": "fake", "max_tokens": 40, "n": 5}


def say(request: EngineRequest, choice: int) -> bytes:
    prompt = bytes(request.prompt)
    return (ANSWERS if b"json" in prompt else TEXTS)[choice].encode()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster(FakeEngine(script=say)) as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Any]:
    async with (
        running_gateway(cluster.router.endpoint) as gateway,
        AsyncOpenAI(base_url=gateway.api, api_key="any", max_retries=0) as client,
    ):
        yield client


async def test_the_most_frequent_text_wins_with_its_votes(client: Any) -> None:
    answer = await client.completions.create(prompt="x", **MANY, extra_body={"majority_vote": True})

    assert [choice.text for choice in answer.choices] == TEXTS
    vote = {"choice": 0, "answer": "yes", "votes": 3, "total": 5}
    assert answer.model_extra["penstock"]["vote"] == vote


async def test_a_field_of_structured_answers_is_voted_on(client: Any) -> None:
    answer = await client.chat.completions.create(
        messages=[{"role": "user", "content": "json"}],
        **MANY,
        extra_body={"majority_vote": True, "vote_field": "city"},
    )

    vote = {"choice": 0, "answer": "bonn", "votes": 3, "total": 4}
    assert answer.model_extra["penstock"]["vote"] == vote


async def test_a_streamed_vote_comes_with_the_usage(client: Any) -> None:
    stream = await client.completions.create(
        prompt="x",
        **MANY,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"majority_vote": True},
    )
    last = [chunk async for chunk in stream][-1]

    assert last.model_extra["penstock"]["vote"]["votes"] == 3


async def test_a_vote_field_without_a_vote_is_refused(client: Any) -> None:
    with pytest.raises(BadRequestError, match="needs majority_vote"):
        await client.completions.create(prompt="x", **MANY, extra_body={"vote_field": "city"})


async def test_the_likeliest_of_more_samples_are_returned(cluster: Cluster, client: Any) -> None:
    request = {**MANY, "n": 5, "logprobs": 0}
    drawn = await client.completions.create(prompt="x", **request)
    best = await client.completions.create(prompt="x", **{**request, "n": 2}, best_of=5)

    means = {c.text: math.fsum(c.logprobs.token_logprobs) / len(c.text) for c in drawn.choices}
    ranked = sorted(means, key=lambda text: means[text], reverse=True)
    assert [choice.text for choice in best.choices] == ranked[:2]
    assert best.usage.completion_tokens == sum(map(len, TEXTS))


async def test_a_plain_stub_gets_the_vote_in_the_last_message(cluster: Cluster) -> None:
    request = ask("json", max_tokens=40)
    request.sampling.n = 5
    request.aggregation = sampling_pb2.AGGREGATION_MAJORITY_VOTE
    request.vote_field = "city"
    events = [event async for event in cluster.inference.Generate(request, timeout=20)]

    vote = events[-1].completed.vote
    assert (vote.choice_index, vote.answer, vote.votes, vote.total) == (0, "bonn", 3, 4)
