"""The official SDK runs a batch on the real batch service, Celery worker and Redis included."""

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from penstock_testing.processes.redis import redis_server
from penstock_testing.servers.batch import batch_processes, jsonl
from penstock_testing.servers.echo_router import EchoRouter, running_echo
from penstock_testing.servers.gateway import running_gateway

pytestmark = pytest.mark.process

ENDED = {"completed", "failed", "expired", "cancelled"}
LINES = 20
DEADLINE_S = 60


async def ended(client: Any, batch_id: str) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            batch = await client.batches.retrieve(batch_id)
            if batch.status in ENDED:
                return batch
            await asyncio.sleep(0.05)


async def submit(client: Any, content: bytes) -> Any:
    file = await client.files.create(file=("input.jsonl", content), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    return await ended(client, batch.id)


async def test_a_batch_goes_from_upload_to_answers(tmp_path: Path) -> None:
    kinds = ("serve", "work")
    with redis_server() as redis:
        async with running_echo(EchoRouter()) as router:
            with batch_processes(tmp_path, redis, router, kinds) as processes:
                async with (
                    running_gateway(router, processes.endpoint) as gateway,
                    AsyncOpenAI(base_url=gateway.api, api_key="any", max_retries=10) as client,
                ):
                    await check_answers(client)
                    await check_a_malformed_line(client)
                    await check_refusals(client)


async def check_answers(client: Any) -> None:
    batch = await submit(client, jsonl(LINES))

    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed) == (LINES, LINES)
    content = await client.files.content(batch.output_file_id)
    answers = [json.loads(line) for line in content.text.splitlines()]
    assert {answer["custom_id"] for answer in answers} == {f"line-{i + 1}" for i in range(LINES)}
    assert all(answer["response"]["status_code"] == 200 for answer in answers)
    assert batch.id in [listed.id async for listed in client.batches.list()]


async def check_a_malformed_line(client: Any) -> None:
    batch = await submit(client, jsonl(2) + b"{nonsense\n")

    assert batch.status == "failed"
    assert [error.line for error in batch.errors.data] == [3]


async def check_refusals(client: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.batches.retrieve("batch_none")
    with pytest.raises(openai.NotFoundError):
        await client.files.content("file-none")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.files.create(file=("x", b"{}"), purpose="vision")
    assert caught.value.param == "purpose"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.batches.create(
            input_file_id="file-none", endpoint="/v1/images/edits", completion_window="24h"
        )
    assert caught.value.param == "endpoint"
