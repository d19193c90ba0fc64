"""What every RPC of every server goes through: credentials, errors, spans, duration.

Own code because the official aio interceptors lose cancellations and break on streams. Servicers
only raise ``PenstockError`` and read ``principal``; they see neither statuses nor metadata.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from penstock_core.errors import (
    Aborted,
    InternalError,
    MalformedMessage,
    NotSupported,
    PenstockError,
)
from penstock_core.rpc.status import CODES, to_grpc_status
from penstock_core.security.auth import DEFAULT_TENANT, Authenticator, Principal
from penstock_core.telemetry import semconv as sc
from penstock_core.telemetry.deferred import Deferred
from penstock_core.telemetry.tracing import incoming

logger = logging.getLogger(__name__)

_ANYBODY = Principal(DEFAULT_TENANT)
principal: ContextVar[Principal] = ContextVar("penstock_principal", default=_ANYBODY)

# These live for hours, and get no span.
_LONG_LIVED = ("Watch", "Relay")
_OPEN_SERVICES = ("/grpc.health.v1.", "/grpc.reflection.")
# grpc's handlers are typed by their messages only in stubs; at this seam they are opaque.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class _Malformed:
    """Stands for a request whose bytes did not parse."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Authenticates, traces, measures and translates errors of every call of one server."""

    def __init__(self, callers: Authenticator) -> None:
        self._callers = callers
        self._tracer = trace.get_tracer("penstock.rpc")
        meter = metrics.get_meter("penstock.rpc")
        duration = meter.create_histogram(
            sc.RPC_DURATION, unit="s", description="Duration of RPCs, streams included."
        )
        self._took = Deferred(meter).measure(duration.record)
        self._wrapped: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _MaybeHandler:
        """Wrap the handler of one call."""
        method = str(handler_call_details.method)
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            is_open = method.startswith(_OPEN_SERVICES)
            wrapped = _open(handler) if is_open else _Guarded(self, method).wrap(handler)
            self._wrapped[method] = wrapped  # as many as are served
        return wrapped

    def handling(self, method: str, headers: dict[str, str]) -> "Handling":
        """What every call goes through, however it came; needs a task of its own.

        Raises, on leaving or on entering:
            PenstockError: what was raised within, or Unauthenticated, PermissionDenied.
        """
        return Handling(self, method, headers)

    def authenticate(self, method: str, headers: dict[str, str]) -> Principal:
        """The caller of a request."""
        return self._callers.authenticate(headers, method)

    def begun(self, method: str, headers: dict[str, str]) -> trace.Span:
        """The span of a call."""
        name = method.lstrip("/")
        return self._tracer.start_span(
            name,
            context=incoming(headers),
            kind=SpanKind.SERVER,
            attributes={sc.RPC_SYSTEM: "grpc", sc.RPC_METHOD: name},
        )

    def took(self, method: str, code: str, seconds: float) -> None:
        """A call is over."""
        attributes = {sc.RPC_METHOD: method.lstrip("/"), sc.RPC_STATUS: code}
        self._took(seconds, attributes)


class Handling:
    """Around one call: its span and duration, its caller's credentials, its defects."""

    def __init__(self, owner: ServerInterceptor, method: str, headers: dict[str, str]) -> None:
        self._owner = owner
        self._method = method
        self._headers = headers
        self._started = time.perf_counter()
        self._span: trace.Span = trace.INVALID_SPAN

    def __enter__(self) -> None:
        if not self._method.rpartition("/")[2].startswith(_LONG_LIVED):
            self._span = self._owner.begun(self._method, self._headers)
            # Each call has a task of its own, so there is nothing to detach from afterwards.
            otel_context.attach(trace.set_span_in_context(self._span))
        try:
            principal.set(self._owner.authenticate(self._method, self._headers))
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        failure = _translated(error)
        code = "OK"
        if isinstance(failure, asyncio.CancelledError):
            code = "CANCELLED"
        elif isinstance(failure, PenstockError):
            code = CODES[type(failure)].name
            self._span.set_attribute(sc.ERROR_TYPE, failure.slug)
        if code != "OK":
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.set_attribute(sc.RPC_STATUS, code)
        self._span.end()
        self._owner.took(self._method, code, time.perf_counter() - self._started)
        if failure is not None and failure is not error:
            raise failure from error


class _Guarded:
    """A method behind the interceptor."""

    def __init__(self, owner: ServerInterceptor, method: str) -> None:
        self._owner = owner
        self._method = method

    def wrap(self, handler: _Handler) -> _Handler:
        """A handler that does the same behind our checks."""
        codecs = {
            "request_deserializer": _tolerant(handler.request_deserializer),
            "response_serializer": _passes_bytes(handler.response_serializer),
        }
        if handler.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            behave = handler.stream_stream or handler.unary_stream
            return make(self._streaming(behave), **codecs)
        make_unary = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        behave = handler.stream_unary or handler.unary_unary
        return make_unary(self._unary(behave), **codecs)

    def _unary(self, behave: Any) -> Any:
        async def call(request: Any, context: _Context) -> Any:
            try:
                with self._owner.handling(self._method, _headers(context)):
                    return await behave(_parsed(request), context)
            except PenstockError as error:
                await _refuse(context, error)

        return call

    def _streaming(self, behave: Any) -> Any:
        async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
            try:
                with self._owner.handling(self._method, _headers(context)):
                    responses = behave(_parsed(request), context)
                    try:
                        async for response in responses:
                            yield response
                    finally:
                        # grpc.aio never closes a handler's generator; what it holds must be freed.
                        await responses.aclose()
            except PenstockError as error:
                await _refuse(context, error)

        return call


def _open(handler: _Handler) -> _Handler:
    """The same for everybody, untraced; malformed requests are refused without an entry in the log."""
    # Of grpc.aio's handlers, which its type stubs know only as those of the other stack.
    behave: Any = handler.stream_stream or handler.unary_stream or handler.unary_unary

    async def call(request: Any, context: _Context) -> Any:
        try:
            return await behave(_parsed(request), context)
        except MalformedMessage as error:
            await _refuse(context, error)
        except NotImplementedError:
            await _refuse(context, NotSupported("this server does not implement the call"))

    async def stream(request: Any, context: _Context) -> AsyncIterator[Any]:
        try:
            async for response in behave(_parsed(request), context):
                yield response
        except MalformedMessage as error:
            await _refuse(context, error)

    wrapped = stream if inspect.isasyncgenfunction(behave) else call
    if handler.request_streaming:
        make = grpc.stream_stream_rpc_method_handler
    elif handler.response_streaming:
        make = grpc.unary_stream_rpc_method_handler
    else:
        make = grpc.unary_unary_rpc_method_handler
    return make(
        wrapped,
        request_deserializer=_tolerant(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )


def _parsed(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise MalformedMessage(f"the request does not parse: {request.reason}")
    return _checked(request) if hasattr(request, "__aiter__") else request


def _headers(context: _Context) -> dict[str, str]:
    metadata = context.invocation_metadata() or ()
    return {key.lower(): value for key, value in metadata if isinstance(value, str)}


def _translated(error: BaseException | None) -> BaseException | None:
    """A defect becomes an InternalError: its text stays in the log."""
    if isinstance(error, PenstockError) or not isinstance(error, Exception):
        return error
    logger.error("an RPC failed unexpectedly", exc_info=error)
    return InternalError("internal error; see the server's log")


async def _refuse(context: _Context, error: PenstockError) -> NoReturn:
    if isinstance(error, Aborted) and context.done():
        raise asyncio.CancelledError
    await context.abort_with_status(to_grpc_status(error))
    raise AssertionError("abort_with_status always raises")


async def _checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, _Malformed):
            raise MalformedMessage(f"a request message does not parse: {request.reason}")
        yield request


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Bytes that do not parse become a value, since gRPC would answer INTERNAL for them."""
    if deserialize is None:
        return None

    def parse(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except (DecodeError, UnicodeDecodeError) as error:
            return _Malformed(str(error))

    return parse


def _passes_bytes(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """A handler may answer with serialized bytes: a proxied stream is forwarded unparsed."""
    if serialize is None:
        return None

    def render(message: Message | bytes) -> bytes:
        return message if isinstance(message, bytes) else serialize(message)

    return render
