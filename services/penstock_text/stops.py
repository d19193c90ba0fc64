"""Finds stop strings in a text that arrives in pieces.

Each stop string is followed by a Knuth-Morris-Pratt automaton, so a character costs O(1) amortised
for each stop string, and the longest partial match is at hand: that much text must be held back.
"""


class _Automaton:
    """Progress of one stop string: ``matched`` characters of it end the text seen so far."""

    __slots__ = ("_fallback", "matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = _borders(stop)

    def advance(self, char: str) -> bool:
        """Take one character; True if the stop string is now complete."""
        while self.matched and self.stop[self.matched] != char:
            self.matched = self._fallback[self.matched - 1]
        if self.stop[self.matched] == char:
            self.matched += 1
        return self.matched == len(self.stop)

    def pass_over(self) -> None:
        """Go on after a complete match that does not count."""
        self.matched = self._fallback[-1]


class StopMatcher:
    """Follows several stop strings; the first that is complete wins, of several at once the longest."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._automata = [_Automaton(stop) for stop in sorted(set(stops), key=len, reverse=True)]

    @property
    def held_chars(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return max((a.matched for a in self._automata), default=0)

    def feed(self, text: str, *, armed: bool = True) -> tuple[str, int] | None:
        """Take a piece of text.

        Returns:
            The stop string and the offset in ``text`` just behind it, once one is complete.
            While not ``armed``, complete ones do not count.
        """
        if not self._automata:
            return None
        for offset, char in enumerate(text, start=1):
            complete = [a for a in self._automata if a.advance(char)]
            if complete and armed:
                return complete[0].stop, offset
            for automaton in complete:
                automaton.pass_over()
        return None


def _borders(stop: str) -> list[int]:
    """For each prefix the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = borders[length - 1]
        length += stop[index] == stop[length]
        borders[index] = length
    return borders
