"""Speaks with a worker's relay as a router would, message by message."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
from google.rpc import status_pb2

from penstock.inference.v1 import generate_pb2
from penstock.worker.v1 import relay_pb2, worker_service_pb2_grpc
from penstock_core.errors import PenstockError
from penstock_core.rpc.channels import channel
from penstock_core.rpc.credit import WINDOW_BYTES
from penstock_core.rpc.status import from_status
from penstock_core.telemetry.tracing import Metadata

_Call: TypeAlias = "grpc.aio.StreamStreamCall[relay_pb2.RelayRequest, relay_pb2.RelayResponse]"


@dataclass(slots=True)
class Said:
    """What a relay said about one stream so far."""

    events: list[generate_pb2.GenerateResponse] = field(default_factory=list)
    has_ended: bool = False
    failure: PenstockError | None = None

    @property
    def kinds(self) -> list[str]:
        """Its events in order."""
        return [event.WhichOneof("event") or "" for event in self.events]


class RelayTalk:
    """One relay. ``said`` is what it said, by stream; ``messages`` how many it took."""

    def __init__(self, call: _Call) -> None:
        self.call = call
        self.said: dict[int, Said] = {}
        self.messages = 0

    async def open(
        self,
        stream_id: int,
        request: generate_pb2.GenerateRequest | bytes,
        credit_bytes: int = WINDOW_BYTES,
        metadata: Metadata = (),
        timeout_s: float | None = None,
    ) -> None:
        """Begin a stream."""
        raw = request if isinstance(request, bytes) else request.SerializeToString()
        self.said.setdefault(stream_id, Said())
        opened = relay_pb2.OpenedStream(
            stream_id=stream_id,
            request=raw,
            metadata=dict(metadata),
            timeout_s=timeout_s,
            credit_bytes=credit_bytes,
        )
        await self.call.write(relay_pb2.RelayRequest(opened=[opened]))

    async def give(self, stream_id: int, room_bytes: int) -> None:
        """More room for a stream."""
        credit = relay_pb2.StreamCredit(stream_id=stream_id, bytes=room_bytes)
        await self.call.write(relay_pb2.RelayRequest(credits=[credit]))

    async def cancel(self, *stream_ids: int) -> None:
        """Want no more of streams."""
        await self.call.write(relay_pb2.RelayRequest(cancelled=stream_ids))

    async def listen(self) -> None:
        """Take one message. Raises AioRpcError, and EOFError at the end."""
        message = await self.call.read()
        if message is grpc.aio.EOF:
            raise EOFError("the relay has ended")
        assert isinstance(message, relay_pb2.RelayResponse)
        self.messages += 1
        for some in message.events:
            said = self.said[some.stream_id]
            assert not said.has_ended, "an event after the end"
            said.events += [generate_pb2.GenerateResponse.FromString(raw) for raw in some.events]
        for end in message.ends:
            said = self.said[end.stream_id]
            said.has_ended = True
            if end.status:
                said.failure = from_status(status_pb2.Status.FromString(end.status))

    async def until_over(self, *stream_ids: int) -> Sequence[Said]:
        """Listen until streams have ended."""
        while not all(self.said[stream_id].has_ended for stream_id in stream_ids):
            await self.listen()
        return [self.said[stream_id] for stream_id in stream_ids]


@asynccontextmanager
async def relay_to(
    endpoint: str, metadata: Metadata = (), timeout_s: float = 20.0
) -> AsyncIterator[RelayTalk]:
    """A relay of a worker; it breaks when the context ends."""
    async with channel(endpoint) as to:
        stub = worker_service_pb2_grpc.WorkerServiceStub(to)
        call = stub.Relay(metadata=metadata, timeout=timeout_s)
        try:
            yield RelayTalk(call)
        finally:
            call.cancel()
