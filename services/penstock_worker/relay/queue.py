"""What a relay has to say to its router and has not said yet. Pure.

Bounded by its streams: each holds at most its room of events, and one end.
"""

from penstock.worker.v1 import relay_pb2

# One message; a larger event goes alone.
MESSAGE_BYTES = 256 * 1024


class RelayQueue:
    """Events and ends of streams, by stream; ``take`` gives as much as fits into a message."""

    def __init__(self, message_bytes: int = MESSAGE_BYTES) -> None:
        self._message_bytes = message_bytes
        # In the order in which streams got something to say.
        self._events: dict[int, list[bytes]] = {}
        self._ends: dict[int, bytes] = {}

    def __len__(self) -> int:
        """Streams with something to say."""
        return len(self._events.keys() | self._ends.keys())

    def event(self, stream_id: int, raw: bytes) -> None:
        """A stream's next event, serialized."""
        self._events.setdefault(stream_id, []).append(raw)

    def end(self, stream_id: int, status: bytes) -> None:
        """A stream is over; nothing follows."""
        self._ends[stream_id] = status

    def drop(self, stream_id: int) -> None:
        """Nobody listens to a stream any more."""
        self._events.pop(stream_id, None)
        self._ends.pop(stream_id, None)

    def take(self) -> relay_pb2.RelayResponse | None:
        """The next message; None if there is nothing to say."""
        if not self._events and not self._ends:
            return None
        message, left = relay_pb2.RelayResponse(), self._message_bytes
        for stream_id in list(self._events):
            if left <= 0:
                break
            left -= self._move(stream_id, message, left)
        for stream_id in [s for s in self._ends if s not in self._events]:
            message.ends.add(stream_id=stream_id, status=self._ends.pop(stream_id))
        return message

    def _move(self, stream_id: int, message: relay_pb2.RelayResponse, room: int) -> int:
        """Take as many events of a stream as there is room for; returns their size."""
        waiting, size, count = self._events.pop(stream_id), 0, 0
        for raw in waiting:
            if size + len(raw) > room and (count or message.events):
                break
            size, count = size + len(raw), count + 1
        if count:
            message.events.add(stream_id=stream_id, events=waiting[:count])
        if count == len(waiting):
            return size
        self._events[stream_id] = waiting[count:]  # behind the others
        return room
