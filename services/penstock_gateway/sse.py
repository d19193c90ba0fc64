"""Server-sent events: headers only once there is something to say, then one write an event.

A failure before the first event keeps its HTTP status; after it, it is an event of its own.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Sequence

from starlette.types import Receive, Scope, Send

from penstock_core.errors import Aborted, PenstockError
from penstock_gateway.disconnect import until_disconnect
from penstock_openai.errors import body_of
from penstock_openai.json_object import Json

logger = logging.getLogger(__name__)

# Sends events; waits while the client reads slowly.
Emit = Callable[[Sequence[Json]], Awaitable[None]]

_DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Asks reverse proxies not to collect the stream.
    (b"x-accel-buffering", b"no"),
]


def encode(event: Json) -> bytes:
    """One event on the wire."""
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()


class EventStream:
    """An ASGI response whose events ``produce`` emits."""

    def __init__(self, produce: Callable[[Emit], Awaitable[None]]) -> None:
        self._produce = produce

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the producer ends, fails or the client leaves."""
        writer = _Writer(send)
        try:
            await until_disconnect(receive, self._run(writer))
        except Aborted:
            if not writer.has_started:
                raise
            logger.info("the client left a stream")

    async def _run(self, writer: "_Writer") -> None:
        try:
            await self._produce(writer.events)
        except PenstockError as error:
            if not writer.has_started:
                raise
            logger.warning("a stream failed: %s", error.slug)
            await writer.end(encode(body_of(error)))
        else:
            await writer.end(_DONE)


class _Writer:
    """Writes to one client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_started = False

    async def events(self, events: Sequence[Json]) -> None:
        """Write events, with the headers before the first."""
        if events:
            await self._write(b"".join(map(encode, events)), more=True)

    async def end(self, last: bytes) -> None:
        """Write the last event. Nothing may be awaited after it: the client may be gone then."""
        await self._write(last, more=False)

    async def _write(self, data: bytes, *, more: bool) -> None:
        if not self.has_started:
            self.has_started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
