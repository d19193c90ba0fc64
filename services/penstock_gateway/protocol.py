"""uvicorn's HTTP/1.1 with bounded heads: it would keep every header that comes, however many."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128


class HeadTooLarge(Exception):
    """Ends the parsing of a request; the client gets a 400."""


class BoundedHttp(HttpToolsProtocol):
    """Refuses a request whose first line and headers exceed the bounds, and its connection."""

    _in_head = True
    _went_on = False
    _unread = 0

    def data_received(self, data: bytes) -> None:
        """Bytes of the connection."""
        self._went_on = False
        super().data_received(data)
        if not self._in_head or self._went_on:
            return  # these bytes held a body, or the beginning of a head
        # A head without an end: the parser tells of a header only when it is complete.
        self._unread += len(data)
        if self._unread > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is there. Raises HeadTooLarge."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            raise HeadTooLarge
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It is there as a whole; another may follow."""
        self._begin_head()
        super().on_message_complete()

    def _begin_head(self) -> None:
        self._in_head, self._went_on, self._unread = True, True, 0
