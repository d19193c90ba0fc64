"""The way of one generation: straight from a worker where that works, through the router where not.

Owns the choice of way and every second try. Before the first token a failed attempt is repeated
on another worker; after it the failure is the caller's to see, so no token ever comes twice.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

import grpc

from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock.routing.v1 import routing_service_pb2, routing_service_pb2_grpc
from penstock_client.connections import Connections, Unreachable
from penstock_client.deadlines import Deadline
from penstock_client.results import Completed, Started, StreamEvent
from penstock_client.translate import from_response
from penstock_core.errors import PenstockError, Rejected, WorkerLost
from penstock_core.status import from_rpc_error
from penstock_core.tool_calls import hold_to_tool_call
from penstock_core.tracing import Metadata, outgoing

Mode = Literal["lookaside", "proxy"]
Events = AsyncGenerator[StreamEvent, None]
_Call = grpc.aio.UnaryStreamCall[generate_pb2.GenerateRequest, generate_pb2.GenerateResponse]

MAX_DIRECT_ATTEMPTS = 3


class Streamer:
    """Streams generations through one router."""

    def __init__(
        self, router: grpc.aio.Channel, workers: Connections, credentials: Metadata, mode: Mode
    ) -> None:
        self._workers = workers
        self._credentials = credentials
        self._mode = mode
        self._inference = inference_service_pb2_grpc.InferenceServiceStub(router)
        self._routing = routing_service_pb2_grpc.RoutingServiceStub(router)

    async def stream(self, request: generate_pb2.GenerateRequest, deadline: Deadline) -> Events:
        """Started, deltas, finished for each sample, completed. Closing it ends the request.

        Raises:
            WorkerLost: the worker went away after the first token.
            PenstockError: as the router or the worker answered.
        """
        excluded: list[str] = []
        while self._mode == "lookaside" and len(excluded) < MAX_DIRECT_ATTEMPTS:
            route = await self._route(request, excluded, deadline)
            begun = False
            try:
                async with aclosing(self._direct(route, request, deadline)) as events:
                    async for event in events:
                        begun = True
                        yield event
            except Unreachable:
                break
            except PenstockError as error:
                if begun or not error.retryable:
                    raise
                excluded.append(route.worker_id)
            else:
                return
        async with aclosing(self._proxied(request, deadline)) as events:
            async for event in events:
                yield event

    async def _route(
        self, request: generate_pb2.GenerateRequest, excluded: list[str], deadline: Deadline
    ) -> routing_service_pb2.RouteResponse:
        try:
            return await self._routing.Route(
                routing_service_pb2.RouteRequest(request=request, excluded_worker_ids=excluded),
                timeout=deadline.remaining_s(),
                metadata=outgoing(*self._credentials),
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def _direct(
        self,
        route: routing_service_pb2.RouteResponse,
        request: generate_pb2.GenerateRequest,
        deadline: Deadline,
    ) -> Events:
        leased = generate_pb2.GenerateRequest()
        leased.CopyFrom(request)
        leased.request_id = route.request_id
        hold_to_tool_call(leased)  # the tools go with the conversation
        leased.tokens.CopyFrom(route.prompt_tokens)
        leased.lease.CopyFrom(route.lease)
        async with self._workers.use(route.endpoint) as channel:
            # The lease is the credential here: API keys go to routers only.
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            call = stub.Generate(leased, timeout=deadline.remaining_s(), metadata=outgoing())
            async with aclosing(_events(call, "lookaside")) as events:
                async for event in events:
                    yield event

    async def _proxied(self, request: generate_pb2.GenerateRequest, deadline: Deadline) -> Events:
        call = self._inference.Generate(
            request, timeout=deadline.remaining_s(), metadata=outgoing(*self._credentials)
        )
        async with aclosing(_events(call, "proxy")) as events:
            async for event in events:
                yield event


async def _events(call: _Call, mode: Mode) -> Events:
    """A call's events. Started is held back until there is more, since an attempt may yet fail."""
    held: Started | None = None
    begun = completed = False
    try:
        async for message in call:
            event = from_response(message, mode)
            if isinstance(event, Started):
                held = event
                continue
            if held is not None:
                yield held
                held = None
            if event is not None:
                begun = True
                yield event
            completed = completed or isinstance(event, Completed)
    except grpc.aio.AioRpcError as error:
        failure = from_rpc_error(error)
        raise (_after_start(failure) if begun else failure) from error
    finally:
        call.cancel()
    if not completed:
        raise WorkerLost("the stream ended before the generation did")


def _after_start(error: PenstockError) -> PenstockError:
    """What a failure means once tokens came: a refusal it can no longer be."""
    if isinstance(error, Rejected):
        return WorkerLost(f"the worker went away: {error.message}", metadata=error.metadata)
    return error
