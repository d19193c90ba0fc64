"""Every RPC of a running server, found by reflection, and raw calls of them."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from penstock_core.errors import PenstockError
from penstock_core.rpc.channels import channel
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security.tls import PLAIN, Tls
from penstock_core.telemetry.tracing import Metadata

_TIMEOUT_S = 10.0
# What gRPC says in place of the true reason when a call was refused while it said something.
_CUT_SHORT = "Internal error from Core"


@dataclass(frozen=True, slots=True)
class Method:
    """An RPC as gRPC calls it: ``/package.Service/Name``."""

    path: str
    client_streaming: bool
    server_streaming: bool

    @property
    def service(self) -> str:
        """Full name of its service."""
        return self.path.split("/")[1]


async def methods_of(target: str, tls: Tls = PLAIN) -> list[Method]:
    """What a server says that it serves."""
    async with channel(target, tls) as to:
        found = []
        for service in await _services(to):
            found += await _methods(to, service)
    return found


async def refusal(
    target: str, method: Method, metadata: Metadata, request: bytes = b"", tls: Tls = PLAIN
) -> PenstockError | None:
    """Why a call with these bytes is refused; None if it was answered, be it by a first message."""
    async with channel(target, tls) as to:
        try:
            await _call(to, method, metadata, (request,))
        except grpc.aio.AioRpcError as error:
            if error.details() != _CUT_SHORT:
                return from_rpc_error(error)
        else:
            return None
        try:
            await _call(to, method, metadata, ())
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
    return None


async def _call(
    to: grpc.aio.Channel, method: Method, metadata: Metadata, messages: Sequence[bytes]
) -> None:
    """Say these messages where a stream is asked for, else the only one. Raises AioRpcError."""
    request = b"".join(messages)

    async def requests() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    told: dict[str, Any] = {"timeout": _TIMEOUT_S, "metadata": metadata}
    if method.client_streaming:
        if method.server_streaming:
            await to.stream_stream(method.path, _same, _same)(requests(), **told).read()
        else:
            await to.stream_unary(method.path, _same, _same)(requests(), **told)
    elif method.server_streaming:
        call = to.unary_stream(method.path, _same, _same)(request, **told)
        if await call.read() is grpc.aio.EOF and await call.code() is not grpc.StatusCode.OK:
            raise AssertionError("a failed stream raises")
        call.cancel()
    else:
        await to.unary_unary(method.path, _same, _same)(request, **told)


async def _services(to: grpc.aio.Channel) -> list[str]:
    wanted = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = await _reflected(to, wanted)
    return sorted(service.name for service in answer.list_services_response.service)


async def _methods(to: grpc.aio.Channel, service: str) -> list[Method]:
    wanted = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
    answer = await _reflected(to, wanted)
    found = []
    for raw in answer.file_descriptor_response.file_descriptor_proto:
        file = descriptor_pb2.FileDescriptorProto.FromString(raw)
        for declared in file.service:
            if f"{file.package}.{declared.name}" == service:
                found += [
                    Method(f"/{service}/{m.name}", m.client_streaming, m.server_streaming)
                    for m in declared.method
                ]
    return found


async def _reflected(
    to: grpc.aio.Channel, wanted: reflection_pb2.ServerReflectionRequest
) -> reflection_pb2.ServerReflectionResponse:
    async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield wanted

    stub = reflection_pb2_grpc.ServerReflectionStub(to)
    call = stub.ServerReflectionInfo(requests(), timeout=_TIMEOUT_S)
    answer: reflection_pb2.ServerReflectionResponse = await call.read()
    call.cancel()
    return answer


def _same(raw: bytes) -> bytes:
    return raw
