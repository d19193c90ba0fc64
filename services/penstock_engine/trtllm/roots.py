"""Whose a first block is. Pure; time comes in.

The engine tells a stored block's tokens and parent, but neither the salt nor the adapter that keep
tenants apart. Children follow from their parent; a first block belongs to a request that was
submitted with these tokens and found none of them cached. This holds those requests, oldest first.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import xxhash

from penstock_core.blocks import pack_tokens

# After a request's end its last blocks may still be on their way through the event stream.
_LINGER_S = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class _Expected:
    """A chain start that may get this first block; each request's entry is its own."""

    start: int


class Roots:
    """First blocks that are expected."""

    def __init__(self) -> None:
        self._expected: dict[int, list[_Expected]] = {}
        self._ended: deque[tuple[float, int, _Expected]] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._expected.values()))

    def expect(self, block: Sequence[int], start: int) -> "Claim":
        """A request that may store this first block was submitted."""
        key = xxhash.xxh3_64_intdigest(pack_tokens(block))
        entry = _Expected(start)
        self._expected.setdefault(key, []).append(entry)
        return Claim(self, key, entry)

    def owner(self, block: Sequence[int], is_held: Callable[[int], bool]) -> int | None:
        """The chain start that a stored first block belongs to; None if nobody is known to expect it.

        ``is_held`` tells whether a chain start has the block already.
        """
        key = xxhash.xxh3_64_intdigest(pack_tokens(block))
        entries = self._expected.get(key, [])
        for entry in entries:
            if not is_held(entry.start):
                self._remove(key, entry)
                return entry.start
        return None

    def sweep(self, now: float) -> None:
        """Forget what ended long ago."""
        while self._ended and self._ended[0][0] <= now:
            _, key, entry = self._ended.popleft()
            self._remove(key, entry)

    def clear(self) -> None:
        """Forget everything."""
        self._expected.clear()
        self._ended.clear()

    def settle(self, key: int, entry: _Expected) -> None:
        """The request found the block cached: it stores none."""
        self._remove(key, entry)

    def end(self, key: int, entry: _Expected, now: float) -> None:
        """The request ended."""
        self._ended.append((now + _LINGER_S, key, entry))

    def _remove(self, key: int, entry: _Expected) -> None:
        entries = self._expected.get(key, [])
        remaining = [other for other in entries if other is not entry]
        if remaining:
            self._expected[key] = remaining
        else:
            self._expected.pop(key, None)


@dataclass(frozen=True, slots=True)
class Claim:
    """One request's expectation of its first block."""

    _roots: Roots
    _key: int
    _entry: _Expected

    def settle(self) -> None:
        """The block was cached already."""
        self._roots.settle(self._key, self._entry)

    def end(self, now: float) -> None:
        """The request ended; its events may still come for a while."""
        self._roots.end(self._key, self._entry, now)
