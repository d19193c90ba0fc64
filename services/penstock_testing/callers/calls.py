"""Calls a server with plain stubs, and reads a Generate stream strictly as its contract says."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from penstock.inference.v1 import generate_pb2
from penstock.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from penstock.worker.v1 import worker_service_pb2
from penstock.worker.v1.worker_service_pb2_grpc import WorkerServiceStub
from penstock_core.blocks import unpack_tokens
from penstock_core.rpc import server as rpc
from penstock_core.rpc.status import from_rpc_error
from penstock_testing.state.picture import Picture

if TYPE_CHECKING:  # the stubs' asyncio flavour exists for type checkers only
    from penstock.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub
    from penstock.worker.v1.worker_service_pb2_grpc import WorkerServiceAsyncStub


@dataclass(slots=True)
class Transcript:
    """What a Generate stream said so far; ``add`` checks order and positions as it goes."""

    started: generate_pb2.Started | None = None
    deltas: list[generate_pb2.Delta] = field(default_factory=list)
    finished: dict[int, generate_pb2.Finished] = field(default_factory=dict)
    completed: generate_pb2.Completed | None = None
    first_positions: dict[int, int] = field(default_factory=dict)

    def add(self, response: generate_pb2.GenerateResponse) -> None:
        """Take the next message. Raises AssertionError if it must not come now."""
        assert self.completed is None, "a message after the last"
        match response.WhichOneof("event"):
            case "started":
                assert self.started is None, "started twice"
                self.started = response.started
            case "delta":
                self._add_delta(response.delta)
            case "finished":
                self.finished[response.finished.choice_index] = response.finished
            case "completed":
                self.completed = response.completed

    def tokens(self, index: int = 0) -> list[int]:
        """Tokens of a sample."""
        packed = (d.tokens.ids for d in self.deltas if d.choice_index == index)
        return unpack_tokens(b"".join(packed))

    def text(self, index: int = 0) -> str:
        """Text of a sample, an echoed prompt included."""
        return "".join(d.text for d in self.deltas if d.choice_index == index)

    def _add_delta(self, delta: generate_pb2.Delta) -> None:
        index = delta.choice_index
        assert self.started is not None, "a delta before the start"
        assert index not in self.finished, "a delta after the end of its sample"
        if not delta.is_echo:
            first = self.first_positions.setdefault(index, delta.first_position)
            expected = first + len(self.tokens(index))
            assert delta.first_position == expected, "a position was repeated or skipped"
        self.deltas.append(delta)


@dataclass(frozen=True, slots=True)
class Calls:
    """Stubs of one server."""

    channel: grpc.aio.Channel
    inference: "InferenceServiceAsyncStub"
    control: "WorkerServiceAsyncStub"

    async def generate(self, request: generate_pb2.GenerateRequest) -> Transcript:
        """A whole stream. Raises PenstockError as the server meant it."""
        return await read(self.inference.Generate(request))


class Watch:
    """A subscription to a worker's state feed; ``picture`` is what it knows."""

    def __init__(self, frames: AsyncIterable[worker_service_pb2.WatchStateResponse]) -> None:
        self.picture = Picture()
        self._frames = aiter(frames)

    async def until(self, condition: Callable[[Picture], bool], timeout_s: float = 20) -> Picture:
        """Follow until a condition holds. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not condition(self.picture):
                self.picture.take(await anext(self._frames))
        return self.picture


@asynccontextmanager
async def watching(calls: Calls) -> AsyncIterator[Watch]:
    """A subscription that has its snapshot: whatever happens from now on it will hear of."""
    request = worker_service_pb2.WatchStateRequest(subscriber_id="test")
    frames = calls.control.WatchState(request)
    watch = Watch(frames)
    await watch.until(lambda picture: picture.snapshots == 1)
    try:
        yield watch
    finally:
        frames.cancel()


@asynccontextmanager
async def calls_to(endpoint: str) -> AsyncIterator[Calls]:
    """Stubs of the server at an address."""
    async with rpc.channel(endpoint) as channel:
        yield Calls(channel, InferenceServiceStub(channel), WorkerServiceStub(channel))


async def read(responses: AsyncIterable[generate_pb2.GenerateResponse]) -> Transcript:
    """A stream to its end. Raises PenstockError as the server meant it."""
    transcript = Transcript()
    try:
        async for response in responses:
            transcript.add(response)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    return transcript
