"""The gateway's two upstreams as async calls that raise Penstock's errors and have deadlines."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.batch.v1 import batch_pb2, batch_service_pb2, batch_service_pb2_grpc
from penstock.inference.v1 import (
    generate_pb2,
    inference_service_pb2,
    inference_service_pb2_grpc,
)
from penstock_client.connections import Connections
from penstock_client.deadlines import Deadline
from penstock_client.streaming import Streamer, Way
from penstock_core.errors import PenstockError, Unauthenticated, Unavailable
from penstock_core.rpc.client_stream import exchange
from penstock_core.rpc.status import from_rpc_error
from penstock_core.telemetry.tracing import outgoing
from penstock_gateway.caller import Caller

_PROBE_TIMEOUT_S = 2.0
_BATCHES = batch_service_pb2.DESCRIPTOR.services_by_name["BatchService"].full_name
_INFERENCE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name

Answer = TypeVar("Answer")


@contextmanager
def translated() -> Iterator[None]:
    """Raise a failed call as the error it stands for."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


class RouterClient:
    """Inference through a router (or a worker: both speak the same service)."""

    def __init__(
        self, channel: grpc.aio.Channel, timeout_s: float, patience_s: float = 0.0
    ) -> None:
        self._channel = channel
        self._stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        self._timeout_s = timeout_s
        self._way = Way("proxy", patience_s=patience_s)
        self._workers = Connections()  # never used: all goes through routers

    async def generate(
        self, request: generate_pb2.GenerateRequest, caller: Caller
    ) -> AsyncGenerator[generate_pb2.GenerateResponse, None]:
        """The events of one request. Closing the generator cancels the call.

        A router that goes away costs nothing: another one, or the same when it is back, goes on.
        """
        streamer = Streamer(self._channel, self._workers, caller.credentials, self._way)
        events = streamer.responses(request, Deadline.after(self._timeout_s))
        async with aclosing(events):
            async for event in events:
                yield event

    async def embed(
        self, request: inference_service_pb2.EmbedRequest, caller: Caller
    ) -> inference_service_pb2.EmbedResponse:
        """A vector for each input."""
        with translated():
            answer: inference_service_pb2.EmbedResponse = await self._stub.Embed(
                request, timeout=self._timeout_s, metadata=caller.metadata()
            )
        return answer

    async def models(self, caller: Caller) -> list[inference_service_pb2.Model]:
        """Everything that is served, sorted by name."""
        request = inference_service_pb2.ListModelsRequest()
        with translated():
            answer = await self._stub.ListModels(
                request, timeout=self._timeout_s, metadata=caller.metadata()
            )
        return list(answer.models)

    async def model(self, name: str, caller: Caller) -> inference_service_pb2.Model:
        """One model. Raises ModelNotFound if nobody serves it."""
        request = inference_service_pb2.GetModelRequest(model=name)
        with translated():
            answer = await self._stub.GetModel(
                request, timeout=self._timeout_s, metadata=caller.metadata()
            )
        return answer.model

    async def check_ready(self) -> None:
        """Return if the router answers and serves a model. Raises Unavailable if not."""
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                with translated():
                    await self._check_health()
                    await self._check_models()
        except Unavailable:
            raise
        except (PenstockError, TimeoutError) as error:
            raise Unavailable(f"the router is not ready: {error or 'no answer'}") from error

    async def _check_health(self) -> None:
        answer = await self._health.Check(health_pb2.HealthCheckRequest(service=_INFERENCE))
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise Unavailable("the router is not serving")

    async def _check_models(self) -> None:
        try:
            with translated():
                answer = await self._stub.ListModels(
                    inference_service_pb2.ListModelsRequest(), metadata=outgoing()
                )
        except Unauthenticated:
            return  # Probes carry no key; that the router serves must do.
        if not answer.models:
            raise Unavailable("no model is served")


class BatchClient:
    """Files and batches."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        self.stub = batch_service_pb2_grpc.BatchServiceStub(channel)
        self._upload = channel.stream_stream(
            f"/{_BATCHES}/UploadFile",
            request_serializer=batch_service_pb2.UploadFileRequest.SerializeToString,
            response_deserializer=batch_service_pb2.UploadFileResponse.FromString,
        )
        self._timeout_s = timeout_s

    async def call(
        self, method: Callable[..., Awaitable[Answer]], request: object, caller: Caller
    ) -> Answer:
        """One unary call on a caller's behalf."""
        with translated():
            return await method(request, timeout=self._timeout_s, metadata=caller.metadata())

    async def upload(
        self, parts: AsyncIterator[batch_service_pb2.UploadFileRequest], caller: Caller
    ) -> batch_pb2.File:
        """Store a file. If ``parts`` raises, nothing is stored and the error comes out."""
        call = self._upload(timeout=self._timeout_s, metadata=caller.metadata())
        with translated():
            return (await exchange(call, parts)).file

    async def download(self, file_id: str, caller: Caller) -> AsyncGenerator[bytes, None]:
        """A file's bytes."""
        request = batch_service_pb2.DownloadFileRequest(file_id=file_id)
        call = self.stub.DownloadFile(request, timeout=self._timeout_s, metadata=caller.metadata())
        try:
            with translated():
                async for part in call:
                    yield part.data
        finally:
            call.cancel()
