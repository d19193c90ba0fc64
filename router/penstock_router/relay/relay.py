"""One call to a worker that carries many streams: who waits for what of it, and what is to be said."""

import asyncio
import logging
from collections import deque
from itertools import count
from typing import TypeAlias

import grpc
from google.protobuf.message import Message

from penstock.worker.v1 import relay_pb2
from penstock_core.rpc.channels import MAX_MESSAGE_BYTES
from penstock_core.rpc.credit import WINDOW_BYTES
from penstock_core.rpc.status import from_rpc_error
from penstock_core.telemetry.tracing import Metadata
from penstock_router.relay.stream import RelayStream

logger = logging.getLogger(__name__)

# As many as a worker takes on one connection, whichever way they come.
MAX_STREAMS = 1024
# Larger requests would keep the others waiting.
MAX_REQUEST_BYTES = 256 * 1024
_MESSAGE_BYTES = MAX_MESSAGE_BYTES // 4
RelayCall: TypeAlias = "grpc.aio.StreamStreamCall[Message, relay_pb2.RelayResponse]"


class Relay:
    """Runs one such call until it breaks or is closed; then all its streams have broken."""

    def __init__(self, call: RelayCall) -> None:
        self._call = call
        self._ids = count(1)
        self._streams: dict[int, RelayStream] = {}
        self._opened: deque[relay_pb2.OpenedStream] = deque()
        self._credits: dict[int, int] = {}
        self._cancelled: list[int] = []
        self._due = asyncio.Event()
        self.is_open = True
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    def __len__(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    @property
    def is_full(self) -> bool:
        """Whether it has as many streams as a worker takes."""
        return len(self._streams) >= MAX_STREAMS

    def open(
        self, who: str, request: bytes, metadata: Metadata, timeout_s: float | None
    ) -> RelayStream:
        """Begin a stream."""
        stream_id = next(self._ids)
        stream = self._streams[stream_id] = RelayStream(stream_id, who, self)
        opened = relay_pb2.OpenedStream(
            stream_id=stream_id,
            request=request,
            metadata=dict(metadata),
            timeout_s=timeout_s,
            credit_bytes=WINDOW_BYTES,
        )
        if timeout_s is not None:
            stream.expires_in(timeout_s)
        self._opened.append(opened)
        self._due.set()
        return stream

    def give(self, stream_id: int, room_bytes: int) -> None:
        """Tell the worker of more room."""
        self._credits[stream_id] = self._credits.get(stream_id, 0) + room_bytes
        self._due.set()

    def forget(self, stream_id: int) -> None:
        """Tell the worker that nobody listens to a stream any more."""
        if self._streams.pop(stream_id, None) is not None:
            self._cancelled.append(stream_id)
            self._due.set()

    async def close(self) -> None:
        """End it, and every stream in it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self) -> None:
        """Say what is due, all of it at once. The reader hears of what goes wrong."""
        while True:
            await self._due.wait()
            self._due.clear()
            while self._opened or self._credits or self._cancelled:
                try:
                    await self._call.write(self._message())
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return

    def _message(self) -> relay_pb2.RelayRequest:
        opened, size = [], 0
        while self._opened and size < _MESSAGE_BYTES:
            opened.append(self._opened.popleft())
            size += len(opened[-1].request)
        if self._opened:  # what is said of a stream comes behind its beginning
            return relay_pb2.RelayRequest(opened=opened)
        credits, self._credits = self._credits, {}
        cancelled, self._cancelled = self._cancelled, []
        return relay_pb2.RelayRequest(
            opened=opened,
            credits=[relay_pb2.StreamCredit(stream_id=s, bytes=n) for s, n in credits.items()],
            cancelled=cancelled,
        )

    async def _read(self) -> None:
        why = "it ended the connection"
        try:
            while isinstance(message := await self._call.read(), relay_pb2.RelayResponse):
                self._take(message)
        except grpc.aio.AioRpcError as error:
            why = from_rpc_error(error).message
            logger.debug("a relay ended: %s", why)
        finally:
            self._over(why)

    def _take(self, message: relay_pb2.RelayResponse) -> None:
        streams = self._streams
        for said in message.events:
            stream = streams.get(said.stream_id)
            if stream is not None:  # else it was cancelled meanwhile
                stream.add(said.events)
        for end in message.ends:
            stream = streams.pop(end.stream_id, None)
            if stream is not None:
                stream.ended(end.status)

    def _over(self, why: str) -> None:
        self.is_open = False
        self._call.cancel()
        self._tasks[0].cancel()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.broke(why)
