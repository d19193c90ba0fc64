"""Calls that stream requests and get one answer, with the server's own status when it refuses early.

A server may refuse an upload at its first message. gRPC's aio client then reports INTERNAL,
"Internal error from Core", for the write that failed: it overwrites the server's status with that,
or, in a stream-unary call, never looks at it. So such calls are made as stream-stream ones, which
are the same on the wire, and the server's status is noted when it passes by.

Source: https://github.com/grpc/grpc/issues/36066
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import grpc

_FAILED_WRITE = "Internal error from Core"
# The status is under way when a write fails because of it.
_STATUS_WAIT_S = 1.0
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Value = TypeVar("_Value")


async def exchange(
    call: "grpc.aio.StreamStreamCall[_Request, _Response]", requests: AsyncIterator[_Request]
) -> _Response:
    """Send all requests and return the one response. The call is over afterwards, whatever happens.

    If ``requests`` raises, the call is cancelled and the error comes out.

    Raises:
        grpc.RpcError: with the status that the server sent.
    """
    verdict = _Verdict(call)
    try:
        await _send(call, requests)
        return await _answer(call)
    except grpc.aio.AioRpcError as error:
        if error.details() != _FAILED_WRITE:
            raise
        raise await verdict.behind(error) from error
    finally:
        call.cancel()


async def _send(
    call: "grpc.aio.StreamStreamCall[_Request, _Response]", requests: AsyncIterator[_Request]
) -> None:
    async for request in requests:
        if call.done():  # Refused; reading the answer tells why.
            return
        await call.write(request)
    if not call.done():
        await call.done_writing()


async def _answer(call: "grpc.aio.StreamStreamCall[_Request, _Response]") -> _Response:
    async for answer in call:
        return answer
    nothing = grpc.aio.Metadata()
    raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, "no response came")


class _Verdict:
    """Notes the status that the server sent, though another one may be put in its place."""

    def __init__(self, call: "grpc.aio.StreamStreamCall[Any, Any]") -> None:
        self._error: grpc.aio.AioRpcError | None = None
        self._is_told = asyncio.Event()
        call.add_done_callback(self._note)

    async def behind(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """The server's status, or ``error`` if none comes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_STATUS_WAIT_S):
                await self._is_told.wait()
        return self._error or error

    def _note(self, call: Any) -> None:
        """Called for each status that the call takes on, the server's among them."""
        details = _at_once(call.details())
        if details == _FAILED_WRITE:
            return
        trailers = _at_once(call.trailing_metadata())
        code = _at_once(call.code())
        self._error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)
        self._is_told.set()


def _at_once(coroutine: Coroutine[Any, Any, _Value]) -> _Value:
    """The result of a coroutine that has nothing to wait for, since the call is done."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: _Value = done.value
        return value
    coroutine.close()
    raise RuntimeError("a finished call kept its status to itself")
