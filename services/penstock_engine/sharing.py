"""Attribution of an engine's time where the engine tells of none: by the work in it, moment by moment.

Owns a clock that runs while anybody is inside and that divides each second by weight, in tokens of
a step. The sum over all parts is the time in which anybody was inside. Pure; time comes in.
"""

from dataclasses import dataclass

from penstock_engine.api import Share

DECODE_WEIGHT = 1


@dataclass(slots=True, eq=False)
class Part:
    """One sequence inside. ``since`` is the clock as it stood when its share was last added up."""

    weight: int
    since: float
    is_decoding: bool = False
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def share(self) -> Share:
        """What was its own, as of the last time that it was added up."""
        return Share(self.prefill_s, self.decode_s)


class Sharing:
    """The sequences inside. ``step_tokens``: most tokens that one may have in a step."""

    def __init__(self, step_tokens: int) -> None:
        self._step_tokens = step_tokens
        self._weight = 0
        self._clock = 0.0  # seconds a unit of weight
        self._counted_at = 0.0
        self._busy_s = 0.0

    def busy_s(self, now: float) -> float:
        """Seconds in which anybody was inside."""
        self._count(now)
        return self._busy_s

    def enter(self, prefill_tokens: int, now: float) -> Part:
        """A sequence begins with its prefill."""
        self._count(now)
        part = Part(max(min(prefill_tokens, self._step_tokens), 1), self._clock)
        self._weight += part.weight
        return part

    def decodes(self, part: Part, now: float) -> None:
        """Its prefill is over."""
        self.add_up(part, now)
        self._weight += DECODE_WEIGHT - part.weight
        part.weight, part.is_decoding = DECODE_WEIGHT, True

    def add_up(self, part: Part, now: float) -> Share:
        """What was its own until now."""
        self._count(now)
        earned = (self._clock - part.since) * part.weight
        part.since = self._clock
        if part.is_decoding:
            part.decode_s += earned
        else:
            part.prefill_s += earned
        return part.share

    def leave(self, part: Part, now: float) -> Share:
        """It is gone; the whole of what was its own."""
        share = self.add_up(part, now)
        self._weight -= part.weight
        part.weight = 0
        return share

    def _count(self, now: float) -> None:
        if self._weight:
            passed = now - self._counted_at
            self._busy_s += passed
            self._clock += passed / self._weight
        self._counted_at = now
