"""The way of one generation: straight from a worker where that works, through the router where not.

Owns the choice of way and every further try. Before the first token a failed attempt is repeated on
another worker; after it the next one goes on where the last stopped, so no token is lost or doubled.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

import grpc

from penstock.common.v1 import usage_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock.routing.v1 import routing_service_pb2, routing_service_pb2_grpc
from penstock_client.attempt import messages
from penstock_client.connections import Connections, Unreachable
from penstock_client.deadlines import Deadline
from penstock_client.results import StreamEvent
from penstock_client.translate import from_response
from penstock_core.errors import Conflict, Draining, PenstockError, Rejected, Unavailable
from penstock_core.requests.tool_calls import hold_to_tool_call
from penstock_core.requests.transcript import Response, Transcript
from penstock_core.rpc.attempts import MAX_FIRST_ATTEMPTS, PATIENCE_S, Attempts, is_lost_connection
from penstock_core.rpc.stalls import STALL_FLOOR_S
from penstock_core.rpc.status import from_rpc_error
from penstock_core.telemetry.tracing import Metadata, outgoing

Mode = Literal["lookaside", "proxy"]
Events = AsyncGenerator[StreamEvent, None]
Responses = AsyncGenerator[Response, None]

_ROUTER = "the router"
_LOOK_AGAIN_S = 0.25
_MAX_UNREACHABLE = 3


@dataclass(frozen=True, slots=True)
class Way:
    """Which way tokens take.

    Attributes:
        mode: straight from a worker where that works, or through the router.
        stall_s: seconds of silence after which a worker counts as lost.
        patience_s: how long a request that has not begun waits for a router that cannot be reached.
    """

    mode: Mode = "lookaside"
    stall_s: float = STALL_FLOOR_S
    patience_s: float = 0.0


class Streamer:
    """Streams generations through one router."""

    def __init__(
        self, router: grpc.aio.Channel, workers: Connections, credentials: Metadata, way: "Way"
    ) -> None:
        self.workers = workers
        self.credentials = credentials
        self.way = way
        self.inference = inference_service_pb2_grpc.InferenceServiceStub(router)
        self.routing = routing_service_pb2_grpc.RoutingServiceStub(router)

    async def stream(self, request: generate_pb2.GenerateRequest, deadline: Deadline) -> Events:
        """Started, deltas, finished for each sample, completed. Closing it ends the request.

        Raises:
            WorkerLost: the worker went away, and nobody could go on with the request.
            PenstockError: as the router or the worker answered.
        """
        stream = _Stream(self, request, deadline)
        async with aclosing(stream.responses()) as responses:
            async for message in responses:
                event = from_response(message, stream.mode)
                if event is not None:
                    yield event

    def responses(self, request: generate_pb2.GenerateRequest, deadline: Deadline) -> Responses:
        """As ``stream``, in the messages of the wire."""
        return _Stream(self, request, deadline).responses()


class _Stream:
    """One request over as many attempts as it takes."""

    def __init__(
        self, streamer: Streamer, request: generate_pb2.GenerateRequest, deadline: Deadline
    ) -> None:
        self._with = streamer
        self._request = request
        self._deadline = deadline
        self._began = time.monotonic()
        self._ttft_s = 0.0
        self._attempts = Attempts(time.monotonic)
        self._patience_ends = float("inf")
        self._seen_worker = ""
        self._is_resumed = False
        self._revision = self._model = ""
        self._num_unreachable = self._num_silent = 0
        self.mode: Mode = streamer.way.mode
        self.transcript = Transcript(request)

    async def responses(self) -> Responses:
        """What the caller is to have, each message once."""
        while not self.transcript.is_completed:
            try:
                async with aclosing(self.attempt()) as attempt:
                    async for message in attempt:
                        yield message
            except PenstockError as error:
                await self.failed(error)

    async def attempt(self) -> Responses:
        """One attempt's messages, as far as they are new.

        Raises:
            PenstockError: how it failed.
        """
        self._seen_worker = ""
        self._is_resumed = self.transcript.has_begun
        request = self._next_request()
        async with aclosing(self._way(request)) as incoming:
            async for message in incoming:
                new = self._new(message)
                if new is not None:
                    self.transcript.note(new)
                    yield new

    def _new(self, message: Response) -> Response | None:
        self._patience_ends = float("inf")
        if self.transcript.has_begun:
            return self.transcript.admit(message) if self._is_resumed else message
        if not message.HasField("started"):
            self._ttft_s = time.monotonic() - self._began
        return message

    async def failed(self, error: PenstockError) -> None:
        """Wait as long as makes sense before the next attempt; raise the error if none does."""
        if self.transcript.is_completed:
            return  # the caller has everything
        if not self.transcript.has_begun:
            await self._failed_first(error)
        else:
            await self._failed_midway(error)

    async def _failed_first(self, error: PenstockError) -> None:
        if self._seen_worker and self.mode != "proxy" and error.retryable:
            self._attempts.failed(self._seen_worker, 0)
            return
        # What the router says stands: it has tried, or knows that there is nothing to try. One that
        # is going away says nothing about the next; what it had begun may be ending at its worker.
        self._num_silent += is_lost_connection(error) or isinstance(error, Draining)
        may_pass = is_lost_connection(error) or isinstance(error, Draining | Conflict)
        waited = time.monotonic() - self._began
        few = self._num_silent < MAX_FIRST_ATTEMPTS
        if not (self._num_silent and may_pass and (few or waited < self._with.way.patience_s)):
            raise error
        await self._pause()

    async def _failed_midway(self, error: PenstockError) -> None:
        if self._seen_worker:
            self._attempts.failed(self._seen_worker, self.transcript.num_tokens)
            if not self._attempts.may_resume(error):
                raise error
            return
        # The router went away or knows nobody at the moment: either may pass.
        now = time.monotonic()
        self._patience_ends = min(self._patience_ends, now + PATIENCE_S)
        may_pass = is_lost_connection(error) or isinstance(error, Rejected | Conflict)
        if now >= self._patience_ends or not may_pass:
            raise error
        await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(min(_LOOK_AGAIN_S, self._deadline.remaining_s()))

    def _next_request(self) -> generate_pb2.GenerateRequest:
        if not self.transcript.has_begun:
            return self._request
        request = generate_pb2.GenerateRequest()
        request.CopyFrom(self._request)
        elapsed = usage_pb2.Timing(ttft_s=self._ttft_s, total_s=time.monotonic() - self._began)
        request.resume.CopyFrom(self.transcript.resume(self._attempts.number, elapsed))
        request.resume.model_revision = self._revision
        request.model = self._model or request.model
        return request

    async def _way(self, request: generate_pb2.GenerateRequest) -> Responses:
        """Straight from a worker, as long as one can be reached."""
        if self.mode == "lookaside" and (
            self.transcript.has_begun or self._attempts.number < MAX_FIRST_ATTEMPTS
        ):
            try:
                async with aclosing(self._direct(request)) as incoming:
                    async for message in incoming:
                        yield message
            except Unreachable as error:
                self._unreachable(error)
            else:
                return
        self.mode = "proxy"
        self._seen_worker = ""
        call = self._with.inference.Generate(
            request,
            timeout=self._deadline.remaining_s(),
            metadata=outgoing(*self._with.credentials),
        )
        async with aclosing(messages(call, _ROUTER)) as incoming:
            async for message in incoming:
                yield message

    def _unreachable(self, error: Unreachable) -> None:
        """One worker that has just died is no sign that none can be reached from here."""
        self._num_unreachable += 1
        if self.transcript.has_begun and self._num_unreachable < _MAX_UNREACHABLE:
            message = f"worker {self._seen_worker} cannot be reached"
            raise Unavailable(message) from error

    async def _direct(self, request: generate_pb2.GenerateRequest) -> Responses:
        route = await self._route(request)
        self._request.request_id = route.request_id
        leased = generate_pb2.GenerateRequest()
        leased.CopyFrom(request)
        leased.request_id = route.request_id
        hold_to_tool_call(leased)  # the tools go with the conversation
        leased.tokens.CopyFrom(route.prompt_tokens)
        leased.lease.CopyFrom(route.lease)
        leased.model = route.model or leased.model
        self._seen_worker = route.worker_id
        self._revision, self._model = route.model_revision, leased.model
        async with self._with.workers.use(route.endpoint) as channel:
            # The lease is the credential here: API keys go to routers only.
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            call = stub.Generate(leased, timeout=self._deadline.remaining_s(), metadata=outgoing())
            async with aclosing(
                messages(call, f"worker {route.worker_id}", self._with.way.stall_s)
            ) as incoming:
                async for message in incoming:
                    yield message

    async def _route(
        self, request: generate_pb2.GenerateRequest
    ) -> routing_service_pb2.RouteResponse:
        excluded = self._attempts.excluded(has_begun=self.transcript.has_begun)
        try:
            return await self._with.routing.Route(
                routing_service_pb2.RouteRequest(
                    request=request, excluded_worker_ids=sorted(excluded)
                ),
                timeout=self._deadline.remaining_s(),
                metadata=outgoing(*self._with.credentials),
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
