"""A server that refuses a stream of requests early is understood."""

from collections.abc import AsyncIterator

import grpc
import pytest

from penstock.batch.v1 import batch_service_pb2 as pb
from penstock_core.rpc.channels import channel
from penstock_core.rpc.client_stream import exchange
from penstock_core.security.auth import KeyRing, Principal, digest
from penstock_testing.servers.memory_batches import Stored, running_batches

UPLOAD = "/penstock.batch.v1.BatchService/UploadFile"
ATTEMPTS = 20


async def parts(purpose: str, count: int) -> AsyncIterator[pb.UploadFileRequest]:
    yield pb.UploadFileRequest(description=pb.FileDescription(filename="x", purpose=purpose))
    for _ in range(count):
        yield pb.UploadFileRequest(data=b"x" * 50_000)


def method(
    opened: grpc.aio.Channel,
) -> "grpc.aio.StreamStreamMultiCallable[pb.UploadFileRequest, pb.UploadFileResponse]":
    return opened.stream_stream(
        UPLOAD,
        request_serializer=pb.UploadFileRequest.SerializeToString,
        response_deserializer=pb.UploadFileResponse.FromString,
    )


async def test_a_whole_stream_gets_its_answer() -> None:
    async with running_batches(Stored()) as address, channel(address) as opened:
        answer = await exchange(method(opened)(timeout=10), parts("batch", 5))

    assert answer.file.size_bytes == 250_000


async def test_an_early_refusal_is_the_servers_however_the_race_ends() -> None:
    keys = KeyRing({digest("k"): Principal("acme")})
    async with running_batches(Stored(), keys) as address, channel(address) as opened:
        for _ in range(ATTEMPTS):
            with pytest.raises(grpc.RpcError) as caught:
                await exchange(method(opened)(timeout=10), parts("batch", 30))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert caught.value.trailing_metadata()


async def test_an_error_of_the_requests_cancels_the_call_and_comes_out() -> None:
    stored = Stored()

    async def broken() -> AsyncIterator[pb.UploadFileRequest]:
        async for part in parts("batch", 2):
            yield part
        raise ZeroDivisionError

    async with running_batches(stored) as address, channel(address) as opened:
        with pytest.raises(ZeroDivisionError):
            await exchange(method(opened)(timeout=10), broken())
        # A whole upload afterwards shows that the broken one had its chance to be stored.
        await exchange(method(opened)(timeout=10), parts("batch", 1))

    assert len(stored.files) == 1
