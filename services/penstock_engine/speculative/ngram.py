"""Prompt lookup: drafts copied from where the same few tokens stood before.

Owns an index of one sequence's n-grams, prompt and output alike. It costs a constant per
token and no arithmetic, and pays wherever a text repeats itself: code, edits, quotations. Pure
Python.

Source: https://github.com/apoorvumang/prompt-lookup-decoding; the index instead of a scan is ours.
"""

from array import array
from dataclasses import dataclass

SIZES = (4, 3, 2)
"""Lengths of the n-grams looked for, longest first: the longer the match, the surer the draft."""


@dataclass(frozen=True, slots=True)
class Match:
    """The last ``size`` tokens stood earlier in the sequence, and were followed by ``position``."""

    position: int
    size: int


class NgramIndex:
    """Where each n-gram of a growing sequence was last followed by something."""

    def __init__(self) -> None:
        self._followed_at: dict[bytes, int] = {}
        self._num_indexed = 0

    def find(self, tokens: "array[int]") -> Match | None:
        """The longest match for the end of ``tokens``, which only ever grow between calls."""
        self._extend(tokens)
        count = len(tokens)
        for size in SIZES:
            if size < count:
                position = self._followed_at.get(tokens[count - size :].tobytes())
                if position is not None:
                    return Match(position, size)
        return None

    def _extend(self, tokens: "array[int]") -> None:
        """Index n-grams that have a follower, the last one's excepted: it would match itself."""
        followed_at, count = self._followed_at, len(tokens)
        for follower in range(max(self._num_indexed, 1), count):
            for size in SIZES:
                if size <= follower:
                    followed_at[tokens[follower - size : follower].tobytes()] = follower
        self._num_indexed = max(self._num_indexed, count)


def continuation(tokens: "array[int]", match: Match, count: int) -> tuple[int, ...]:
    """``count`` tokens as they followed the match; at the sequence's end its period goes on."""
    period = len(tokens) - match.position
    return tuple(tokens[match.position + i % period] for i in range(count))
