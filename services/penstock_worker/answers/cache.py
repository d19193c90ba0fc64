"""Kept answers: bounded in bytes, oldest use first out, forgotten after a while. Pure.

Knows keys and bytes, neither requests nor the clock.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

# An answer larger than this share of the cache would push out too much else.
_LARGEST_SHARE = 8
_ENTRY_OVERHEAD_BYTES = 256


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer's messages as they were sent, and when it was computed."""

    frames: tuple[bytes, ...]
    at: float

    @property
    def num_bytes(self) -> int:
        """What it counts against the bound."""
        return _ENTRY_OVERHEAD_BYTES + sum(map(len, self.frames))


class ResponseCache:
    """Answers by key."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self.num_bytes = 0
        self.max_entry_bytes = max_bytes // _LARGEST_SHARE
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()

    def __len__(self) -> int:
        """Answers that are kept."""
        return len(self._kept)

    def get(self, key: bytes, now: float) -> Kept | None:
        """A kept answer that is not too old."""
        found = self._kept.get(key)
        if found is None:
            return None
        if now - found.at >= self._ttl_s:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, frames: Sequence[bytes], now: float) -> bool:
        """Keep an answer in place of an older one; False if it is too large."""
        kept = Kept(tuple(frames), now)
        if kept.num_bytes > self.max_entry_bytes:
            return False
        if key in self._kept:
            self._drop(key)
        self._kept[key] = kept
        self.num_bytes += kept.num_bytes
        while self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))
        return True

    def _drop(self, key: bytes) -> None:
        self.num_bytes -= self._kept.pop(key).num_bytes
