"""The official SDK uploads files and runs batches through a real gateway."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from penstock_testing.servers.gateway import running_gateway
from penstock_testing.servers.memory_batches import Stored, running_batches

LINES = b'{"custom_id": "a"}\n{"custom_id": "b"}\n'


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
async def client(stored: Stored) -> AsyncIterator[Any]:
    async with (
        running_batches(stored) as batch,
        running_gateway(router=batch, batch=batch) as gateway,
        AsyncOpenAI(base_url=gateway.api, api_key="any", max_retries=0) as client,
    ):
        yield client


async def upload(client: Any, content: bytes = LINES) -> str:
    file = await client.files.create(file=("lines.jsonl", content), purpose="batch")
    return str(file.id)


async def test_a_file_comes_back_as_it_went(client: Any, stored: Stored) -> None:
    content = bytes(range(256)) * 8192  # 2 MiB, with everything a form's parser could trip over.

    file = await client.files.create(file=("lïnes.jsonl", content), purpose="batch")

    assert (file.filename, file.bytes, file.purpose) == ("lïnes.jsonl", len(content), "batch")
    assert (await client.files.content(file.id)).content == content
    assert (await client.files.retrieve(file.id)).id == file.id
    assert stored.largest_piece < 1024 * 1024, "the upload was collected before it was passed on"


async def test_an_empty_file_comes_back_empty(client: Any) -> None:
    file = await client.files.create(file=("empty.jsonl", b""), purpose="batch")

    assert (await client.files.content(file.id)).content == b""


async def test_files_are_listed_page_by_page(client: Any) -> None:
    ids = [await upload(client) for _ in range(5)]

    listed = [file.id async for file in client.files.list(limit=2, purpose="batch")]

    assert listed == ids[::-1]
    assert [file.id async for file in client.files.list(purpose="batch_output")] == []


async def test_a_deleted_file_is_gone(client: Any) -> None:
    file_id = await upload(client)

    assert (await client.files.delete(file_id)).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            await call(file_id)


async def test_a_batch_runs_to_its_output_file(client: Any, stored: Stored) -> None:
    batch = await client.batches.create(
        input_file_id=await upload(client),
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"team": "x"},
        extra_headers={"idempotency-key": "once"},
    )
    assert (batch.status, batch.completion_window) == ("validating", "24h")
    assert batch.metadata == {"team": "x"}
    assert stored.created[0].completion_window_s == 24 * 3600
    assert stored.created[0].client_request_id == "once"

    ended = await client.batches.retrieve(batch.id)

    assert ended.status == "completed"
    assert (ended.request_counts.total, ended.request_counts.failed) == (2, 0)
    assert ended.usage.total_tokens == 15
    assert ended.usage.input_tokens_details.cached_tokens == 4
    lines = (await client.files.content(ended.output_file_id)).text.splitlines()
    assert lines == ['{"custom_id": "a"}', '{"custom_id": "b"}']


async def test_a_malformed_line_fails_the_batch_with_its_number(client: Any) -> None:
    file_id = await upload(client, b'{"custom_id": "a"}\nnonsense\n')
    batch = await client.batches.create(
        input_file_id=file_id, endpoint="/v1/completions", completion_window="24h"
    )

    failed = await client.batches.retrieve(batch.id)

    assert failed.status == "failed"
    assert [(error.line, error.code) for error in failed.errors.data] == [(2, "invalid_json_line")]


async def test_batches_are_listed_and_cancelled(client: Any) -> None:
    file_id = await upload(client)
    ids = [
        (
            await client.batches.create(
                input_file_id=file_id, endpoint="/v1/completions", completion_window="24h"
            )
        ).id
        for _ in range(3)
    ]

    cancelled = await client.batches.cancel(ids[0])
    await client.batches.retrieve(ids[1])

    assert cancelled.status == "cancelling"
    assert [batch.id async for batch in client.batches.list(limit=2)] == ids[::-1]
    with pytest.raises(openai.ConflictError):
        await client.batches.cancel(ids[1])


@pytest.mark.parametrize(
    ("parameters", "wanted", "param"),
    [
        ({"completion_window": "soon"}, openai.BadRequestError, "completion_window"),
        ({"input_file_id": "file-none"}, openai.NotFoundError, None),
        ({"metadata": {"a": 1}}, openai.BadRequestError, "metadata.a"),
        ({"extra_body": {"windows": 1}}, openai.BadRequestError, "windows"),
        ({"extra_headers": {"idempotency-key": "a b"}}, openai.BadRequestError, "idempotency-key"),
    ],
)
async def test_a_wrong_parameter_of_a_batch_is_named(
    client: Any,
    parameters: dict[str, object],
    wanted: type[openai.APIStatusError],
    param: str | None,
) -> None:
    values = {"endpoint": "/v1/completions", "completion_window": "24h", "input_file_id": "file-0"}

    with pytest.raises(wanted) as caught:
        await client.batches.create(**{**values, **parameters})

    assert caught.value.param == param


async def test_only_batch_files_are_taken(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await client.files.create(file=("x", LINES), purpose="assistants")
    with pytest.raises(openai.BadRequestError, match="expires_after"):
        await client.files.create(
            file=("x", LINES),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
