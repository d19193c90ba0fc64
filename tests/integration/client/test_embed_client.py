"""Embeddings through the client library and the command line, against a scripted router."""

import asyncio
import json
import sys
from collections.abc import Sequence

import pytest

from penstock.inference.v1 import inference_service_pb2 as pb
from penstock_client import AsyncClient, Client, Embeddings
from penstock_core.blocks import unpack_tokens
from penstock_core.errors import InvalidRequest
from penstock_testing.servers.scripted_fleet import API_KEY, FleetFactory


async def test_texts_come_back_as_vectors_in_their_order(fleet: FleetFactory) -> None:
    running = await fleet()
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        found = await client.embed(["a", "b"], pooling="mean", dimensions=2)

    assert found == Embeddings(((1.0, 0.0), (1.0, 1.0)), 6, ("w0",), "emb_1")
    (asked,) = running.proxied.embeds
    assert (asked.model, list(asked.texts), asked.dimensions) == ("demo", ["a", "b"], 2)
    assert asked.pooling == pb.POOLING_MEAN


@pytest.mark.parametrize(
    ("inputs", "texts", "tokens"),
    [("one", ["one"], []), ([[1, 2], [3]], [], [[1, 2], [3]]), ((), [], [])],
)
async def test_one_text_or_token_ids_are_inputs_too(
    fleet: FleetFactory,
    inputs: str | Sequence[Sequence[int]],
    texts: list[str],
    tokens: list[list[int]],
) -> None:
    running = await fleet()
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        await client.embed(inputs, model="demo")

    (asked,) = running.proxied.embeds
    assert list(asked.texts) == texts
    assert [unpack_tokens(each.ids) for each in asked.token_inputs] == tokens
    assert not asked.HasField("dimensions")


@pytest.mark.parametrize(
    ("inputs", "dimensions", "field"),
    [
        (["a", "\ud800"], None, "texts[1]"),
        ([[1], [-1]], None, "token_inputs[1]"),
        ("a", -1, "dimensions"),
    ],
)
async def test_what_cannot_be_sent_is_refused_here(
    fleet: FleetFactory, inputs: str | list[str], dimensions: int | None, field: str
) -> None:
    running = await fleet()
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.embed(inputs, dimensions=dimensions)

    assert caught.value.field == field


async def test_the_blocking_client_embeds_as_well(fleet: FleetFactory) -> None:
    running = await fleet()

    def ask() -> Embeddings:
        with Client(running.target, api_key=API_KEY) as client:
            return client.embed("a", dimensions=1)

    assert (await asyncio.to_thread(ask)).vectors == ((1.0,),)


async def penstock(*arguments: str) -> tuple[str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "penstock_cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode(), err.decode()


async def test_the_command_shows_how_alike_texts_are_or_the_vectors(fleet: FleetFactory) -> None:
    running = await fleet()
    where = ("--target", running.target, "--api-key", API_KEY)

    table, said = await penstock("embed", "open a file", "sort", *where)
    vectors, _ = await penstock("embed", "a", "b", "--pooling", "mean", "--json", *where)

    assert [line.split()[-2:] for line in table.splitlines()] == [
        ["1", "2"],
        ["1.000", "1.000"],
        ["1.000", "2.000"],
    ]
    assert "2 vectors of 2 components; 6 tokens; w0" in said
    assert json.loads(vectors)["vectors"] == [[1.0, 0.0], [1.0, 1.0]]
    assert running.proxied.embeds[1].pooling == pb.POOLING_MEAN
