"""What every HTTP request goes through: id, span, duration, gate, deadline, last-resort errors."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock_core.errors import DeadlineExceeded, InternalError, PenstockError
from penstock_core.security.auth import Authenticator
from penstock_core.telemetry import logs
from penstock_core.telemetry import semconv as sc
from penstock_core.telemetry.tracing import incoming
from penstock_gateway.caller import REQUEST_ID_HEADER, RequestId
from penstock_gateway.errors import response_of
from penstock_gateway.gate import Gate

logger = logging.getLogger(__name__)

API_PREFIX = "/v1/"
# What reading the body and flushing the answer may take beyond the RPC's own deadline.
_SLACK_S = 30.0
_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class Exchange:
    """One request and what was answered to it so far."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.headers = Headers(scope=scope)
        self.request_id = RequestId.of(self.headers)
        self.status = 0
        self._scope = scope
        self._send = send
        scope.setdefault("state", {})["request_id"] = self.request_id

    @property
    def is_api(self) -> bool:
        """Whether it is a client's call and no probe or scrape."""
        return str(self._scope["path"]).startswith(API_PREFIX)

    @property
    def method(self) -> str:
        """The method, of bounded cardinality."""
        method = str(self._scope["method"])
        return method if method in _METHODS else "_OTHER"

    @property
    def route(self) -> str:
        """The path's template, known once it was routed; empty for an unknown path."""
        route: BaseRoute | None = self._scope.get("route")
        return route.path.replace(":path}", "}") if isinstance(route, Route) else ""

    async def send(self, message: Message) -> None:
        """Pass a message on, with the request's id in the headers."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            MutableHeaders(scope=message)[REQUEST_ID_HEADER] = self.request_id.shown
        await self._send(message)


class Edge:
    """The outermost ASGI application."""

    def __init__(
        self, app: ASGIApp, gate: Gate, timeout_s: float, callers: Authenticator | None = None
    ) -> None:
        """Args: ``callers`` refuses strangers before a byte of their body is read."""
        self._callers = callers
        self.app = app
        self._gate = gate
        self._timeout_s = timeout_s + _SLACK_S
        self._tracer = trace.get_tracer("penstock.http")
        self._duration = metrics.get_meter("penstock.http").create_histogram(
            sc.HTTP_DURATION, unit="s", description="Duration of HTTP requests, streams included."
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        exchange = Exchange(scope, send)
        logs.request_id.set(exchange.request_id.unique)
        with self._observed(exchange):
            failure = await self._attempt(exchange, scope, receive)
            if failure is not None and not exchange.status:
                await failure(scope, receive, exchange.send)

    async def _attempt(self, exchange: Exchange, scope: Scope, receive: Receive) -> Response | None:
        """Run the application; what to answer if it did not."""
        try:
            if not exchange.is_api:
                await self.app(scope, receive, exchange.send)
                return None
            if self._callers is not None:
                self._callers.authenticate(exchange.headers)
            with self._gate.pass_through():
                async with asyncio.timeout(self._timeout_s):
                    await self.app(scope, receive, exchange.send)
        except TimeoutError:
            return response_of(DeadlineExceeded(f"not answered in {self._timeout_s:g} s"))
        except PenstockError as error:
            return response_of(error)
        except Exception:
            # The server closes the connection of an answer that was begun and not ended.
            logger.exception("a request failed unexpectedly")
            return response_of(InternalError("internal error; see the server's log"))
        return None

    @contextmanager
    def _observed(self, exchange: Exchange) -> Iterator[None]:
        started = time.perf_counter()
        span = self._span(exchange)
        try:
            with trace.use_span(span):
                yield
        finally:
            attributes: dict[str, str | int] = {
                sc.HTTP_METHOD: exchange.method,
                sc.HTTP_STATUS: exchange.status,
                sc.URL_SCHEME: "http",
            }
            if exchange.route:
                attributes[sc.HTTP_ROUTE] = exchange.route
            here = trace.set_span_in_context(span)  # an exemplar points to this trace
            self._duration.record(time.perf_counter() - started, attributes, here)
            span.update_name(f"{exchange.method} {exchange.route}".strip())
            span.set_attributes(attributes)
            if exchange.status >= 500:
                span.set_attribute(sc.ERROR_TYPE, str(exchange.status))
                span.set_status(Status(StatusCode.ERROR))
            span.end()

    def _span(self, exchange: Exchange) -> trace.Span:
        if not exchange.is_api:  # Probes and scrapes would drown the requests.
            return trace.INVALID_SPAN
        return self._tracer.start_span(
            exchange.method,
            context=incoming(exchange.headers),
            kind=SpanKind.SERVER,
            attributes={sc.REQUEST_ID: exchange.request_id.unique},
        )
