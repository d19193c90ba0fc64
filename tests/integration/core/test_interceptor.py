"""What every RPC goes through, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from penstock.inference.v1 import generate_pb2, inference_service_pb2, inference_service_pb2_grpc
from penstock_core import errors
from penstock_core.rpc import server as rpc
from penstock_core.rpc.interceptors import ServerInterceptor, principal
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security import auth

NAME = "penstock.inference.v1.InferenceService"


class Servicer(inference_service_pb2_grpc.InferenceServiceServicer):
    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.started = asyncio.Event()

    async def Tokenize(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        if request.text == "defect":
            raise KeyError("a secret detail")
        if request.text == "overload":
            raise errors.Overloaded("full", retry_after_s=2.0)
        return inference_service_pb2.TokenizeResponse()

    async def GetModel(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        model = inference_service_pb2.Model(name=principal.get().tenant)
        return inference_service_pb2.GetModelResponse(model=model)

    async def Generate(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        try:
            self.started.set()
            yield generate_pb2.GenerateResponse(delta=generate_pb2.Delta(text="parsed"))
            yield generate_pb2.GenerateResponse(
                delta=generate_pb2.Delta(text="raw")
            ).SerializeToString()
            if request.text == "endless":
                await asyncio.Event().wait()
            raise errors.WorkerLost("the worker is gone")
        finally:
            self.closed.set()


@asynccontextmanager
async def served(
    keys: auth.KeyRing | None = None,
) -> AsyncIterator[tuple[grpc.aio.Channel, Servicer, rpc.RpcServer]]:
    servicer = Servicer()  # type: ignore[abstract]  # the other RPCs are not called
    server = rpc.RpcServer(
        ServerInterceptor(keys or auth.KeyRing.open_to_all()),
        [lambda s: inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, s)],
        [NAME],
    )
    port = server.bind("127.0.0.1:0")
    await server.start()
    await server.serve()
    async with rpc.channel(f"127.0.0.1:{port}") as channel:
        try:
            yield channel, servicer, server
        finally:
            await server.stop(0)


async def failure(call: object) -> tuple[grpc.StatusCode, errors.PenstockError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), from_rpc_error(caught.value)


async def test_errors_arrive_typed_with_details_and_defects_without_theirs() -> None:
    async with served() as (channel, _, _server):
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)

        _, busy = await failure(
            stub.Tokenize(inference_service_pb2.TokenizeRequest(text="overload"))
        )
        code, defect = await failure(
            stub.Tokenize(inference_service_pb2.TokenizeRequest(text="defect"))
        )

    assert isinstance(busy, errors.Overloaded)
    assert busy.retry_after_s == 2.0
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in defect.message


async def test_bytes_that_do_not_parse_are_the_callers_fault() -> None:
    async with served() as (channel, _, _server):
        raw: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{NAME}/Tokenize"
        )

        code, error = await failure(raw(b"\x12\x02\xff\xfe"))  # text = two bytes of no UTF-8

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(error, errors.MalformedMessage)


async def test_a_stream_mixes_messages_and_raw_bytes_and_ends_with_its_error() -> None:
    async with served() as (channel, _, _server):
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(generate_pb2.GenerateRequest())
        first, second = await call.read(), await call.read()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()

    assert isinstance(first, generate_pb2.GenerateResponse)
    assert isinstance(second, generate_pb2.GenerateResponse)
    assert (first.delta.text, second.delta.text) == ("parsed", "raw")
    assert isinstance(from_rpc_error(caught.value), errors.WorkerLost)


async def test_a_cancelled_stream_closes_its_handler() -> None:
    async with served() as (channel, servicer, _server):
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(generate_pb2.GenerateRequest(text="endless"))
        await call.read()
        await servicer.started.wait()

        call.cancel()

        await asyncio.wait_for(servicer.closed.wait(), 5)


async def test_keys_are_asked_for_everywhere_but_in_health() -> None:
    keys = auth.KeyRing({auth.digest("k"): auth.Principal("acme")})
    async with served(keys) as (channel, _, _server):
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        request = inference_service_pb2.GetModelRequest()

        code, _ = await failure(stub.GetModel(request))
        answer = await stub.GetModel(request, metadata=(("authorization", "Bearer k"),))
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert answer.model.name == "acme"
    assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_says_when_to_go_elsewhere_and_reflection_lists_the_services() -> None:
    async with served() as (channel, _, server):
        health = health_pb2_grpc.HealthStub(channel)
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [a async for a in stub.ServerReflectionInfo(iter([question]))]

        await server.not_serving()
        status = await health.Check(health_pb2.HealthCheckRequest(service=NAME))

    names = {s.name for s in answers[0].list_services_response.service}
    assert {NAME, "grpc.health.v1.Health"} <= names
    assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_an_address_in_use_is_a_clear_error() -> None:
    async with served() as (_, _, server):
        other = rpc.RpcServer(ServerInterceptor(auth.KeyRing.open_to_all()), [], [])
        port = server.bind("127.0.0.1:0")

        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            other.bind(f"127.0.0.1:{port}")
