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


Known = Callable[[], Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class _Expected:
    """A chain start that may get this first block; each request's entry is its own.

    ``known`` gives the request's tokens so far; ``key`` is 0 while they fill no block.
    """

    start: int
    key: int
    known: Known


class Roots:
    """First blocks that are expected."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._expected: dict[int, list[_Expected]] = {}
        self._ended: deque[tuple[float, _Expected]] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._expected.values()))

    def expect(self, known: Known, start: int) -> "Claim":
        """A request that may store a first block was submitted.

        ``known`` is asked again for a prompt shorter than a block: its output fills it.
        """
        tokens = known()
        is_whole = len(tokens) >= self._block_tokens
        entry = _Expected(start, _key(tokens[: self._block_tokens]) if is_whole else 0, known)
        self._expected.setdefault(entry.key, []).append(entry)
        return Claim(self, entry)

    def owner(self, block: Sequence[int], is_held: Callable[[int], bool]) -> int | None:
        """The chain start that a stored first block belongs to; None if nobody is known to expect it.

        ``is_held`` tells whether a chain start has the block already.
        """
        entries = list(self._expected.get(_key(block), []))
        entries += [e for e in self._expected.get(0, []) if self._begins(block, e.known())]
        for entry in entries:
            if not is_held(entry.start):
                self.remove(entry)
                return entry.start
        return None

    def sweep(self, now: float) -> None:
        """Forget what ended long ago."""
        while self._ended and self._ended[0][0] <= now:
            self.remove(self._ended.popleft()[1])

    def clear(self) -> None:
        """Forget everything."""
        self._expected.clear()
        self._ended.clear()

    def remove(self, entry: _Expected) -> None:
        """Expect it no more; forgetting twice is fine."""
        entries = self._expected.get(entry.key, [])
        remaining = [other for other in entries if other is not entry]
        if remaining:
            self._expected[entry.key] = remaining
        else:
            self._expected.pop(entry.key, None)

    def end(self, entry: _Expected, now: float) -> None:
        """The request ended."""
        self._ended.append((now + _LINGER_S, entry))

    def _begins(self, block: Sequence[int], known: Sequence[int]) -> bool:
        size = min(len(known), self._block_tokens)
        return list(block[:size]) == list(known[:size])


@dataclass(frozen=True, slots=True)
class Claim:
    """One request's expectation of its first block."""

    _roots: Roots
    _entry: _Expected

    def settle(self) -> None:
        """The block was cached already: it stores none."""
        self._roots.remove(self._entry)

    def end(self, now: float) -> None:
        """The request ended; its events may still come for a while."""
        self._roots.end(self._entry, now)


def _key(block: Sequence[int]) -> int:
    return int(xxhash.xxh3_64_intdigest(pack_tokens(block))) | 1  # never 0
