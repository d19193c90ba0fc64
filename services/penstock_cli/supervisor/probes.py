"""Questions that tell whether a process is ready: gRPC health, an HTTP path, Redis' PING."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock_core.rpc.channels import channel

Probe = Callable[[], Awaitable[bool]]

_TIMEOUT_S = 1.0


def grpc_serving(target: str) -> Probe:
    """Whether a gRPC server's health says SERVING."""

    async def ask() -> bool:
        async with channel(target) as to:
            stub = health_pb2_grpc.HealthStub(to)
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return ask


def http_ok(host: str, port: int, path: str) -> Probe:
    """Whether a GET answers 200."""

    async def ask() -> bool:
        request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode()
        answer = await _exchange(lambda: asyncio.open_connection(host, port), request)
        return answer.split(b" ")[1:2] == [b"200"]

    return ask


def redis_answers(socket_path: str) -> Probe:
    """Whether a Redis server on a unix socket answers PING (and has loaded its data)."""

    async def ask() -> bool:
        connect = lambda: asyncio.open_unix_connection(socket_path)  # noqa: E731
        return (await _exchange(connect, b"PING\r\n")).startswith(b"+PONG")

    return ask


_Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


async def _exchange(connect: _Connect, request: bytes) -> bytes:
    """The first line of an answer; empty if there is none in time."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await connect()
            try:
                writer.write(request)
                await writer.drain()
                return await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return b""
