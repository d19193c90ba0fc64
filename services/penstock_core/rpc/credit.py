"""How much of one stream may be on its way, where many streams share a connection. Pure.

As HTTP/2 does for its streams: the reader of a stream gives room, in bytes; the writer may send while
any is left, so that one that is read slowly fills its own room and nobody else's.

Source: RFC 9113, section 5.2.
"""

WINDOW_BYTES = 64 * 1024


class Allowance:
    """The writer's side: what it may send still."""

    def __init__(self, room_bytes: int) -> None:
        self._left = room_bytes

    @property
    def may_send(self) -> bool:
        """Whether a message may go. It may be larger than what is left, which then is owed."""
        return self._left > 0

    def sent(self, size_bytes: int) -> None:
        """A message went."""
        self._left -= size_bytes

    def given(self, room_bytes: int) -> None:
        """The reader has room again."""
        self._left += room_bytes


class Window:
    """The reader's side: what to give back of what it took."""

    def __init__(self, size_bytes: int = WINDOW_BYTES) -> None:
        self._size = size_bytes
        self._taken = 0

    def took(self, size_bytes: int) -> int:
        """A message was taken for good. Returns the room to give now; 0 until it is worth a message."""
        self._taken += size_bytes
        if self._taken * 2 < self._size:
            return 0
        room, self._taken = self._taken, 0
        return room
