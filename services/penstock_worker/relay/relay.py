"""Many calls of ``Generate`` on one stream, as routers make them: each is served as one of its own.

A message costs a Python hop the same whatever it carries; so what lies ready of all streams goes into
one. Whoever writes does nothing else, and while a message is on its way the next one gathers by itself.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import TypeAlias

from google.protobuf.message import DecodeError

from penstock.inference.v1 import generate_pb2, inference_service_pb2
from penstock.worker.v1 import relay_pb2
from penstock_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MalformedMessage,
    Overloaded,
    PenstockError,
)
from penstock_core.rpc.credit import Allowance
from penstock_core.rpc.interceptors import ServerInterceptor
from penstock_core.rpc.server import MAX_CONCURRENT_STREAMS
from penstock_core.rpc.status import to_status
from penstock_worker.relay.queue import RelayQueue

Answering: TypeAlias = Callable[
    [generate_pb2.GenerateRequest], AsyncGenerator[generate_pb2.GenerateResponse, None]
]
# Routers, and processes of routers, that share a worker.
MAX_RELAYS = 256
_LONGEST_S = 1e8
_SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
GENERATE = f"/{_SERVICE.full_name}/Generate"


class Relays:
    """The relays of a worker. ``answer`` serves a request; ``interceptor`` is what its call would meet."""

    def __init__(self, interceptor: ServerInterceptor, answer: Answering) -> None:
        self._interceptor = interceptor
        self._answer = answer
        self._open: set[_Relay] = set()
        self._closing = False

    async def responses(
        self, requests: AsyncIterable[relay_pb2.RelayRequest]
    ) -> AsyncGenerator[bytes, None]:
        """Serve one relay; yields serialized ``RelayResponse``.

        Raises:
            Overloaded: there are too many.
            MalformedMessage, InvalidRequest: what the router said makes no sense.
        """
        if len(self._open) >= MAX_RELAYS:
            raise Overloaded(f"{MAX_RELAYS} relays are open already", retry_after_s=1.0)
        relay = _Relay(self._interceptor, self._answer)
        self._open.add(relay)
        if self._closing:
            relay.close()
        try:
            async with contextlib.aclosing(relay.responses(requests)) as responses:
                async for response in responses:
                    yield response
        finally:
            self._open.discard(relay)

    def close(self) -> None:
        """End each relay once its streams have ended."""
        self._closing = True
        for relay in self._open:
            relay.close()


class _Stream:
    """One call in a relay."""

    def __init__(self, opened: relay_pb2.OpenedStream) -> None:
        self.opened = opened
        self.task: asyncio.Task[None] | None = None
        self._allowance = Allowance(opened.credit_bytes)
        self._room = asyncio.Event()

    async def room(self, size_bytes: int) -> None:
        """Wait until an event may be sent, and count it."""
        while not self._allowance.may_send:
            self._room.clear()
            await self._room.wait()
        self._allowance.sent(size_bytes)

    def given(self, room_bytes: int) -> None:
        """The router has taken events."""
        self._allowance.given(room_bytes)
        self._room.set()


class _Relay:
    """One router's streams."""

    def __init__(self, interceptor: ServerInterceptor, answer: Answering) -> None:
        self._interceptor = interceptor
        self._answer = answer
        self._streams: dict[int, _Stream] = {}
        self._queue = RelayQueue()
        self._wake = asyncio.Event()
        self._closing = False

    def close(self) -> None:
        """End once no stream is left."""
        self._closing = True
        self._wake.set()

    async def responses(
        self, requests: AsyncIterable[relay_pb2.RelayRequest]
    ) -> AsyncGenerator[bytes, None]:
        """Messages to the router, until it goes away; then its streams are cancelled."""
        reader = asyncio.create_task(self._read(requests))
        reader.add_done_callback(lambda _: self._wake.set())
        try:
            while not reader.done() and not self._has_ended:
                await self._wake.wait()
                self._wake.clear()
                while (message := self._queue.take()) is not None:
                    yield message.SerializeToString()
            if reader.done():
                reader.result()
        finally:
            await _end([reader, *(s.task for s in self._streams.values() if s.task is not None)])

    @property
    def _has_ended(self) -> bool:
        return self._closing and not self._streams and not len(self._queue)

    async def _read(self, requests: AsyncIterable[relay_pb2.RelayRequest]) -> None:
        async for request in requests:
            for opened in request.opened:
                self._begin(opened)
            for credit in request.credits:
                if (stream := self._streams.get(credit.stream_id)) is not None:
                    stream.given(credit.bytes)
            for stream_id in request.cancelled:
                self._cancel(stream_id)

    def _begin(self, opened: relay_pb2.OpenedStream) -> None:
        stream_id = opened.stream_id
        if stream_id in self._streams:
            raise InvalidRequest(f"stream {stream_id} is open already", field="opened.stream_id")
        if len(self._streams) >= MAX_CONCURRENT_STREAMS:
            full = Overloaded(f"{MAX_CONCURRENT_STREAMS} streams are open already")
            self._say_end(stream_id, full)
            return
        stream = self._streams[stream_id] = _Stream(opened)
        stream.task = asyncio.create_task(self._serve(stream))

    def _cancel(self, stream_id: int) -> None:
        self._queue.drop(stream_id)
        stream = self._streams.pop(stream_id, None)
        if stream is not None and stream.task is not None:
            stream.task.cancel()
        self._wake.set()

    async def _serve(self, stream: _Stream) -> None:
        opened = stream.opened
        failure: PenstockError | None = None
        try:
            async with asyncio.timeout(_timeout_s(opened)):
                await self._send(stream)
        except TimeoutError:
            failure = DeadlineExceeded("the deadline has passed")
        except PenstockError as error:
            failure = error
        # Not after a cancellation: then nobody listens.
        if self._streams.pop(opened.stream_id, None) is not None:
            self._say_end(opened.stream_id, failure)

    async def _send(self, stream: _Stream) -> None:
        opened = stream.opened
        with self._interceptor.handling(GENERATE, dict(opened.metadata)):
            answer = self._answer(_parsed(opened.request))
            async with contextlib.aclosing(answer) as responses:
                async for response in responses:
                    raw = response.SerializeToString()
                    await stream.room(len(raw))
                    self._queue.event(opened.stream_id, raw)
                    self._wake.set()

    def _say_end(self, stream_id: int, failure: PenstockError | None) -> None:
        self._queue.end(stream_id, to_status(failure).SerializeToString() if failure else b"")
        self._wake.set()


def _timeout_s(opened: relay_pb2.OpenedStream) -> float | None:
    if not opened.HasField("timeout_s"):
        return None
    if not opened.timeout_s <= _LONGEST_S:  # nor is NaN
        raise InvalidRequest(f"timeout_s is at most {_LONGEST_S:g}", field="opened.timeout_s")
    return opened.timeout_s


def _parsed(raw: bytes) -> generate_pb2.GenerateRequest:
    try:
        return generate_pb2.GenerateRequest.FromString(raw)
    except (DecodeError, UnicodeDecodeError) as error:
        raise MalformedMessage(f"the request does not parse: {error}") from error


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
