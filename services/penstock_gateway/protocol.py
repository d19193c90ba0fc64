"""uvicorn's HTTP/1.1 with bounded heads and patience: it keeps every header and waits for ever.

A connection may take only so long for a request's head, and its body must keep up a pace: who sends a
byte now and then holds a connection no longer than who sends none.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
_TOO_SLOW = b"The request came too slowly."
_TIMEOUT = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_TOO_SLOW), _TOO_SLOW)
)


class HeadTooLarge(Exception):
    """Ends the parsing of a request; the client gets a 400."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take.

    Attributes:
        head_s: seconds for a request's first line and headers.
        body_s: seconds that its body may be behind, silence included.
        body_rate: bytes a second that a body must keep up on average.
    """

    head_s: float = 10.0
    body_s: float = 30.0
    body_rate: float = 4096.0


class BoundedHttp(HttpToolsProtocol):
    """Refuses a request whose first line and headers exceed the bounds, and its connection."""

    patience = Patience()
    _in_head = True
    _went_on = False
    _unread = 0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Until when something must have come; None while it is not the client's turn.
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody is there."""
        super().connection_made(transport)
        self._wait_until(self.loop.time() + self.patience.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """They are gone."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of the connection."""
        self._went_on = False
        was_in_body = not self._in_head
        super().data_received(data)
        if was_in_body and not self._in_head and self._due is not None:
            now, credit_s = self.loop.time(), len(data) / self.patience.body_rate
            self._due = min(self._due + credit_s, now + self.patience.body_s)
        if not self._in_head or self._went_on:
            return  # these bytes held a body, or the beginning of a head
        # A head without an end: the parser tells of a header only when it is complete.
        self._begin_waiting()
        self._unread += len(data)
        if self._unread > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begin_head()
        self._begin_waiting()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is there. Raises HeadTooLarge."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            raise HeadTooLarge
        self._in_head = False
        self._wait_until(self.loop.time() + self.patience.body_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It is there as a whole; another may follow."""
        self._begin_head()
        self._due = None
        super().on_message_complete()

    def _begin_head(self) -> None:
        self._in_head, self._went_on, self._unread = True, True, 0

    def _begin_waiting(self) -> None:
        if self._due is None:
            self._wait_until(self.loop.time() + self.patience.head_s)

    def _wait_until(self, due: float) -> None:
        self._due = due
        if self._timer is not None and self._timer.when() <= due:
            return  # it looks again then
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(due, self._look)

    def _look(self) -> None:
        """Is it overdue? One timer serves all requests of a connection."""
        self._timer = None
        if self._due is None or self.transport.is_closing():
            return
        if self.flow.read_paused:  # it is us who do not read
            self._due = self.loop.time() + self.patience.body_s
        if self._due <= self.loop.time():
            self._cut_off()
        else:
            self._wait_until(self._due)

    def _cut_off(self) -> None:
        logger.info("a client took too long over a request's %s", self._where())
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_TIMEOUT)
            self.transport.close()
        else:
            self.transport.abort()  # an answer is under way, which nothing may be put into

    def _where(self) -> str:
        return "head" if self._in_head else "body"


def bounded_http(given: Patience) -> type[BoundedHttp]:
    """The protocol with this patience: uvicorn makes its protocols from a class."""

    class Bounded(BoundedHttp):
        patience = given

    return Bounded
