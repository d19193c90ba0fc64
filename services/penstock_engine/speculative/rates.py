"""How often drafts stood lately, by kind of draft and by sequence.

Owns the smoothing. Pure Python.
"""

_WEIGHT = 0.08
_FIRST_GUESS = 0.6


class Rates:
    """Smoothed acceptance per kind; a kind never seen starts where ``parent`` stands."""

    def __init__(self, parent: "Rates | None" = None) -> None:
        self._parent = parent
        self._rates: dict[int, float] = {}

    def of(self, kind: int) -> float:
        """The rate in [0, 1] at which a draft of this kind stands behind one that stood."""
        known = self._rates.get(kind)
        if known is not None:
            return known
        return self._parent.of(kind) if self._parent is not None else _FIRST_GUESS

    def note(self, kind: int, drafted: int, accepted: int) -> None:
        """``accepted`` of ``drafted`` stood; those behind the first that fell were not judged."""
        rate = self.of(kind)
        for stood in (True,) * accepted + (False,) * (accepted < drafted):
            rate += _WEIGHT * (stood - rate)
        self._rates[kind] = rate
        if self._parent is not None:
            self._parent.note(kind, drafted, accepted)
