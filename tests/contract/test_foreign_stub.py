"""A client that shares nothing with the checked-in stubs: types made from the ``.proto`` files by buf,
calls made by method name alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import running_cluster

ROOT = Path(__file__).parents[2]
BUF = shutil.which("buf") or str(Path(sys.executable).parent / "buf")
SERVICE = "penstock.inference.v1.InferenceService"


@pytest.fixture(scope="module")
def pool() -> descriptor_pool.DescriptorPool:
    command = [BUF, "build", "--as-file-descriptor-set", "-o", "-"]
    raw = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    made = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file:
        made.Add(file)
    return made


def message(pool: descriptor_pool.DescriptorPool, name: str) -> type[Message]:
    descriptor = pool.FindMessageTypeByName(f"penstock.inference.v1.{name}")
    made: type[Message] = message_factory.GetMessageClass(descriptor)
    return made


async def test_types_made_by_another_tool_stream_through_the_router(
    pool: descriptor_pool.DescriptorPool,
) -> None:
    request, response = message(pool, "GenerateRequest"), message(pool, "GenerateResponse")
    async with (
        running_cluster(FakeEngine()) as cluster,
        grpc.aio.insecure_channel(cluster.router.endpoint) as channel,
    ):
        call: grpc.aio.UnaryStreamMultiCallable[Message, Message] = channel.unary_stream(
            f"/{SERVICE}/Generate",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        asked = request(model="fake", text="hello", stop={"max_tokens": 9})
        events = [event async for event in call(asked, timeout=20)]

    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-2:]) == ("started", ["finished", "completed"])
    tokens = b"".join(e.delta.tokens.ids for e in events)  # type: ignore[attr-defined]
    assert len(tokens) == 9 * 4
