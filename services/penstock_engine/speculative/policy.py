"""How many tokens to draft, and whether to: what a draft is worth against what it costs.

Owns the measured costs by batch size and the decision. It is told batch sizes, seconds and
acceptance rates, and knows neither requests nor drafters nor clocks. Pure Python.

A step that decodes ``b`` sequences takes ``a`` seconds, each drafted row ``m`` more, each further
depth of a draft model ``d``. A sequence whose drafts stand with rate ``r`` gains ``r + r^2 + ... +
r^k`` tokens from ``k`` drafts. The depth with the most tokens a second wins; a batch where none
beats plain decoding is not drafted for. Because costs change (contexts grow, neighbours come and
go), plain steps are measured now and then while drafting, and drafts are tried now and then while
not, ever more rarely where they keep failing.

Source: expected tokens of a draft, https://arxiv.org/abs/2211.17192, equation 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_GAIN = 1.03
"""Tokens a second over those of plain decoding from which on drafting is worth its uncertainty."""
_BEST_RATE = 0.95
"""What a drafter can be hoped to reach; if even that does not pay, nothing is drafted at all."""
_MEASURED = 3
"""Steps of a kind before their cost is believed."""
_PLAIN_EVERY = 64
"""Drafted steps between two plain ones that are measured."""
_FIRST_TRIAL, _LAST_TRIAL = 64, 2048
"""Plain steps before drafts are tried once more; doubled with each trial that fails."""
_TRIAL_DEPTH = 3
_FASTER, _SLOWER = 0.3, 0.06
"""Weights of a new cost below and above the old: noise only ever makes a step take longer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Draft ``depth`` tokens for sequences whose rate is ``least_rate`` or more; 0 for none."""

    depth: int
    least_rate: float = 0.0


NONE = Verdict(0)


@dataclass(slots=True)
class _Cost:
    """What was measured in batches of about one size. Seconds."""

    plain_s: float = 0.0
    row_s: float = 0.0
    draft_s: float = 0.0
    num_plain: int = 0
    num_drafted: int = 0
    since_plain: int = 0
    idle: int = 0
    trial_after: int = _FIRST_TRIAL


class DraftPolicy:
    """Decides once a step; is told afterwards what the step cost."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._costs: dict[int, _Cost] = {}

    def may_pay(self, batch: int, *, needs_model: bool) -> bool:
        """Whether looking for drafts is worth it at all; cheap, and counts the steps till a trial.

        ``needs_model`` tells that no drafts can be had without the draft model's time.
        """
        cost = self._cost(batch)
        if cost.num_plain < _MEASURED:
            return False
        if cost.num_drafted < _MEASURED or cost.idle + 1 >= cost.trial_after:
            return True
        best = self._best(cost, [_BEST_RATE] * batch, cost.draft_s if needs_model else 0.0)
        if best.depth == 0:
            cost.idle += 1
        return best.depth > 0

    def decide(self, batch: int, rates: Sequence[float], *, uses_model: bool) -> Verdict:
        """The depth for drafts that stand with these rates, in a batch of ``batch`` sequences."""
        cost = self._cost(batch)
        if cost.num_plain < _MEASURED or cost.since_plain >= _PLAIN_EVERY:
            return NONE
        trial = Verdict(min(_TRIAL_DEPTH, self._max_tokens))
        if cost.num_drafted < _MEASURED:
            return trial
        best = self._best(cost, rates, cost.draft_s if uses_model else 0.0, batch)
        if best.depth:
            cost.idle, cost.trial_after = 0, _FIRST_TRIAL
            return best
        cost.idle += 1
        if cost.idle < cost.trial_after:
            return NONE
        cost.idle, cost.trial_after = 0, min(2 * cost.trial_after, _LAST_TRIAL)
        return trial

    def note_draft(self, batch: int, depth: int, seconds: float) -> None:
        """A draft model went ``depth`` tokens deep for this batch."""
        if depth:
            cost = self._cost(batch)
            cost.draft_s = _towards(cost.draft_s, seconds / depth)

    def note_step(self, batch: int, num_drafted: int, seconds: float) -> None:
        """A step of nothing but ``batch`` decoding sequences checked ``num_drafted`` tokens."""
        cost = self._cost(batch)
        if num_drafted == 0:
            cost.num_plain += 1
            cost.since_plain = 0
            cost.plain_s = _towards(cost.plain_s, seconds)
        elif cost.num_plain:
            cost.num_drafted += 1
            cost.since_plain += 1
            cost.row_s = _towards(cost.row_s, max(seconds - cost.plain_s, 0.0) / num_drafted)

    def _cost(self, batch: int) -> _Cost:
        """Sizes up to 4 apart, larger ones by the power of two they do not exceed."""
        return self._costs.setdefault(
            batch if batch <= 4 else 1 << (batch - 1).bit_length(), _Cost()
        )

    def _best(
        self, cost: _Cost, rates: Sequence[float], draft_s: float, batch: int | None = None
    ) -> Verdict:
        batch = len(rates) if batch is None else batch
        # A sequence below this rate would pay more for its first row than a token takes.
        least = cost.row_s * batch / cost.plain_s if cost.plain_s else 0.0
        worth = [rate for rate in rates if rate >= least]
        powers, gained, best = list(worth), 0.0, NONE
        most = _LEAST_GAIN
        for depth in range(1, self._max_tokens + 1 if worth else 1):
            gained += sum(powers)
            powers = [power * rate for power, rate in zip(powers, worth, strict=True)]
            seconds = cost.plain_s + depth * (len(worth) * cost.row_s + draft_s)
            speedup = (1 + gained / batch) * cost.plain_s / seconds
            if speedup > most:
                most, best = speedup, Verdict(depth, least)
        return best


def _towards(old: float, new: float) -> float:
    if not old:
        return new
    return old + (_FASTER if new < old else _SLOWER) * (new - old)
