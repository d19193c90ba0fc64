"""The batch client over real sockets, against a service that only pretends the work."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from penstock.batch.v1 import batch_pb2
from penstock_client import AsyncBatchClient
from penstock_core.errors import Conflict, InvalidRequest, NotFound, Unauthenticated, Unavailable
from penstock_core.security.auth import KeyRing, Principal, digest
from penstock_testing.servers.memory_batches import Stored, running_batches

KEYS = KeyRing({digest("pk-good"): Principal("acme")})


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
async def client(stored: Stored) -> AsyncIterator[AsyncBatchClient]:
    async with (
        running_batches(stored, KEYS) as target,
        AsyncBatchClient(target, api_key="pk-good") as connected,
    ):
        yield connected


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(json.dumps({"custom_id": name}) for name in "ab"), encoding="utf-8")
    return path


async def test_file_goes_up_in_bounded_pieces_and_comes_down_the_same(
    client: AsyncBatchClient, stored: Stored, tmp_path: Path
) -> None:
    path = tmp_path / "large.jsonl"
    path.write_bytes(bytes(range(256)) * 12_000)
    uploaded = await client.upload(path)
    pieces = [piece async for piece in client.download(uploaded.id)]

    assert (uploaded.filename, uploaded.size_bytes) == ("large.jsonl", 3_072_000)
    assert stored.largest_piece == 1 << 20
    assert b"".join(pieces) == path.read_bytes()


async def test_batch_is_created_followed_and_read(
    client: AsyncBatchClient, stored: Stored, requests: Path
) -> None:
    uploaded = await client.upload(requests)
    batch = await client.create(
        uploaded.id, "/v1/completions", completion_window_s=60, metadata={"by": "test"}
    )
    states = [state.status async for state in client.watch(batch.id)]
    ended = await client.get(batch.id)
    lines = [result.json async for result in client.results(batch.id)]

    assert stored.created[0].metadata == {"by": "test"}
    assert stored.created[0].completion_window_s == 60
    assert states == [batch_pb2.BATCH_STATUS_VALIDATING]
    assert ended.status == batch_pb2.BATCH_STATUS_COMPLETED
    assert [json.loads(line)["custom_id"] for line in lines] == ["a", "b"]


async def test_pages_follow_one_another(client: AsyncBatchClient, requests: Path) -> None:
    uploaded = await client.upload(requests)
    made = [(await client.create(uploaded.id, "/v1/completions")).id for _ in range(3)]
    first = await client.list(limit=2)
    second = await client.list(limit=2, after=first.batches[-1].id)

    assert [b.id for b in (*first.batches, *second.batches)] == made[::-1]
    assert (first.has_more, second.has_more) == (True, False)


async def test_cancel_is_refused_once_it_ended(client: AsyncBatchClient, requests: Path) -> None:
    uploaded = await client.upload(requests)
    batch = await client.create(uploaded.id, "/v1/completions")

    assert (await client.cancel(batch.id)).status == batch_pb2.BATCH_STATUS_CANCELLING
    with pytest.raises(Conflict):
        await client.cancel(batch.id)


async def test_failures_are_typed_in_calls_and_in_streams(
    client: AsyncBatchClient, stored: Stored, requests: Path
) -> None:
    async def all_of(file_id: str) -> bytes:
        async with aclosing(client.download(file_id)) as pieces:
            return b"".join([piece async for piece in pieces])

    uploaded = await client.upload(requests)
    with pytest.raises(NotFound):
        await client.get("batch_unknown")
    with pytest.raises(NotFound):
        await all_of("file-unknown")
    with pytest.raises(InvalidRequest):
        await client.upload(requests, purpose="nonsense")
    stored.fail_download_at = -1
    with pytest.raises(Unavailable):
        await all_of(uploaded.id)
    with pytest.raises(FileNotFoundError):
        await client.upload(requests.with_name("missing"))


async def test_wrong_key_is_unauthenticated_however_far_the_upload_came(
    stored: Stored, tmp_path: Path
) -> None:
    path = tmp_path / "large.jsonl"
    path.write_bytes(b"x" * 1_500_000)
    async with (
        running_batches(stored, KEYS) as target,
        AsyncBatchClient(target, api_key="pk-bad") as stranger,
    ):
        for _ in range(20):
            with pytest.raises(Unauthenticated):
                await stranger.upload(path)

    assert not stored.files


async def test_a_slow_file_does_not_stop_the_loop(
    client: AsyncBatchClient, stored: Stored, tmp_path: Path
) -> None:
    pipe = tmp_path / "slow.jsonl"
    os.mkfifo(pipe)
    uploading = asyncio.create_task(client.upload(pipe))

    # Each of these lines is reached only if opening and reading leave the loop alone.
    writer = await asyncio.to_thread(pipe.open, "wb", 0)
    with writer:
        writer.write(b"first ")
        await client.list()
        writer.write(b"second")
    uploaded = await uploading

    assert stored.contents[uploaded.id] == b"first second"
