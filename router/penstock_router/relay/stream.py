"""One stream of a relay, as its reader sees it."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from google.rpc import status_pb2

from penstock_core.errors import DeadlineExceeded, PenstockError
from penstock_core.rpc.attempts import lost_connection
from penstock_core.rpc.credit import Window
from penstock_core.rpc.status import from_status


class Speaks(Protocol):
    """The relay, as far as its streams need it."""

    def give(self, stream_id: int, room_bytes: int) -> None:
        """Tell the worker of more room."""
        ...

    def forget(self, stream_id: int) -> None:
        """Tell the worker that nobody listens any more."""
        ...


class RelayStream:
    """See ``FrameStream``. What lies here unread is bounded by the room that its worker was given."""

    def __init__(self, stream_id: int, who: str, relay: Speaks) -> None:
        self._stream_id = stream_id
        self._who = who
        self._relay = relay
        self._frames: deque[bytes] = deque()
        self._window = Window()
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        self._is_cancelled = False
        self._failure: PenstockError | None = None
        self._broken_by: str | None = None

    def expires_in(self, timeout_s: float) -> None:
        """Hold the deadline, whatever the worker does."""
        self._timer = self._loop.call_later(timeout_s, self._expire)

    async def read(self, *, has_begun: bool) -> bytes | None:
        """See ``FrameStream``."""
        while not self._frames:
            if self._is_over:
                self._check_end(has_begun)
                return None
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        frame = self._frames.popleft()
        room = self._window.took(len(frame))
        if room and not self._is_over:
            self._relay.give(self._stream_id, room)
        return frame

    def cancel(self) -> None:
        """See ``FrameStream``."""
        if self._is_over:
            return
        self._is_cancelled = True
        self._finish()
        self._relay.forget(self._stream_id)

    def add(self, frames: Iterable[bytes]) -> None:
        """These came."""
        self._frames.extend(frames)
        self._wake()

    def ended(self, status: bytes) -> None:
        """The worker has said how it ended: a ``google.rpc.Status``, empty if well."""
        if status:
            self._failure = from_status(status_pb2.Status.FromString(status))
        self._finish()

    def broke(self, why: str) -> None:
        """The relay is gone."""
        self._broken_by = why
        self._finish()

    def _expire(self) -> None:
        self._failure = DeadlineExceeded("the deadline has passed")
        self._finish()
        self._relay.forget(self._stream_id)

    def _finish(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _check_end(self, has_begun: bool) -> None:
        if self._is_cancelled:
            raise asyncio.CancelledError
        if self._broken_by is not None:
            raise lost_connection(self._broken_by, self._who, is_lost=has_begun)
        if self._failure is not None:
            raise self._failure
