"""The official SDK embeds through a real gateway."""

import base64
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError

from penstock.inference.v1 import inference_service_pb2 as pb
from penstock_core.blocks import unpack_tokens
from penstock_testing.servers.echo_router import EchoRouter, running_echo
from penstock_testing.servers.gateway import running_gateway


@pytest.fixture
def router() -> EchoRouter:
    return EchoRouter()


@pytest.fixture
async def client(router: EchoRouter) -> AsyncIterator[Any]:
    async with (
        running_echo(router) as address,
        running_gateway(address) as gateway,
        AsyncOpenAI(base_url=gateway.api, api_key="any", max_retries=0) as client,
    ):
        yield client


async def test_a_string_has_one_vector_and_its_usage(client: Any) -> None:
    answer = await client.embeddings.create(model="m", input="hello")

    assert answer.object == "list"
    assert answer.model == "m"
    assert [(each.index, each.object, each.embedding) for each in answer.data] == [
        (0, "embedding", [5.0, 1.0])
    ]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (5, 5)
    assert answer.model_extra["penstock"]["workers"] == ["worker-1"]


@pytest.mark.parametrize(
    ("given", "texts", "tokens"),
    [
        (["a", "bcd"], ["a", "bcd"], []),
        ([7, 8, 9], [], [[7, 8, 9]]),
        ([[7], [8, 9]], [], [[7], [8, 9]]),
    ],
)
async def test_every_form_of_input_arrives_as_it_is(
    client: Any, router: EchoRouter, given: Any, texts: list[str], tokens: list[list[int]]
) -> None:
    answer = await client.embeddings.create(model="m", input=given)

    (request,) = router.embeds
    assert list(request.texts) == texts
    assert [unpack_tokens(each.ids) for each in request.token_inputs] == tokens
    assert [each.index for each in answer.data] == list(range(len(texts or tokens)))
    assert [each.embedding[0] for each in answer.data] == [len(each) for each in texts or tokens]


async def test_numbers_and_base64_are_the_same_vector(client: Any) -> None:
    raw = client.embeddings.with_raw_response
    numbers = await client.embeddings.create(model="m", input="abc", encoding_format="float")
    packed = (await raw.create(model="m", input="abc", encoding_format="base64")).http_response

    text = packed.json()["data"][0]["embedding"]
    assert numbers.data[0].embedding == [3.0, 1.0]
    assert struct.unpack("<2f", base64.b64decode(text)) == (3.0, 1.0)


async def test_dimensions_pooling_and_class_travel(client: Any, router: EchoRouter) -> None:
    answer = await client.embeddings.create(
        model="m",
        input="abc",
        dimensions=1,
        user="me",
        extra_body={"pooling": "mean"},
        extra_headers={"x-penstock-priority": "batch"},
    )

    (request,) = router.embeds
    assert answer.data[0].embedding == [3.0]
    assert request.pooling == pb.POOLING_MEAN
    assert request.priority == 4


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": ""}, "input[0]", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": ["a", ""]}, "input[1]", "empty"),
        ({"input": [[1], []]}, "input[1]", "empty"),
        ({"input": [1.5]}, "input", "a string, an array of strings"),
        ({"input": ["a"] * 2049}, "input", "2049 inputs"),
        ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "base64"),
        ({"input": "a", "nonsense": 1}, "nonsense", "Unrecognized"),
        ({"input": "a", "model": "no-vectors"}, "model", "no embeddings"),
    ],
)
async def test_bad_bodies_name_the_parameter(
    client: Any, body: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(BadRequestError, match=said) as caught:
        await client.post("/embeddings", body={"model": "m", **body}, cast_to=object)

    assert caught.value.param == param
