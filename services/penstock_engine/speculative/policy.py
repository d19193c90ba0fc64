"""How many tokens to draft, and whether to: what a draft is worth against what it costs.

Owns the measured costs by batch size and the decision. It is told batch sizes, seconds and
acceptance rates, and knows neither requests nor drafters nor clocks. Pure Python.

A step that decodes ``b`` sequences takes ``a`` seconds, each drafted row ``m`` more, each further
depth of a draft model ``d``. A sequence whose drafts stand with rate ``r`` gains ``r + r^2 + ... +
r^k`` tokens from ``k`` drafts. The depth with the most tokens a second wins; a batch where none
beats plain decoding is not drafted for. Because costs change (contexts grow, neighbours come and
go), plain steps are measured now and then while drafting, and drafts are tried now and then while
not, ever more rarely where they keep failing. And because a forecast may be wrong, what drafting
really gained is followed too: where it lost, it pauses until the next trial.

Source: expected tokens of a draft, https://arxiv.org/abs/2211.17192, equation 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
_MODEL_TRIAL = 512
"""Steps without the draft model before its cost is measured once more."""
_TRIAL_DEPTH = 3
_WEIGHT, _PLAIN_WEIGHT, _CLIP = 0.1, 0.3, 3.0
"""Of a new cost in the smoothed one, more for the rare plain steps; and how many times the old
cost a new one counts for at most."""
_HOPED_GAIN = 1.15
"""What a trial is credited with; about ten losing steps use it up."""


@dataclass(frozen=True, slots=True)
class Option:
    """A way to draft: the rates at which the drafts of each sequence stand, and whether a model runs."""

    rates: Sequence[float]
    uses_model: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Draft ``depth`` tokens (0: none) as ``option`` says, for rates of ``least_rate`` and more.

    ``speedup`` is what that promises over plain decoding.
    """

    depth: int
    option: int = 0
    least_rate: float = 0.0
    speedup: float = 1.0


NONE = Verdict(0)


@dataclass(slots=True)
class _Cost:
    """What was measured in batches of about one size. Seconds."""

    plain_s: float = 0.0
    row_s: float = 0.0
    draft_s: float = 0.0
    gain: float = _HOPED_GAIN
    spent_s: float = 0.0
    num_plain: int = 0
    num_drafted: int = 0
    since_plain: int = 0
    since_model: int = _MODEL_TRIAL
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
        dream = Option([_BEST_RATE] * batch, needs_model)
        if self._best(cost, dream, batch).depth:
            return True
        cost.idle += 1
        return False

    def decide(self, batch: int, options: Sequence[Option]) -> Verdict:
        """Which of the options to take, how deep, in a batch of ``batch`` sequences."""
        cost = self._cost(batch)
        if cost.num_plain < _MEASURED or cost.since_plain >= _PLAIN_EVERY:
            return NONE
        with_model = next((i for i, option in enumerate(options) if option.uses_model), None)
        cost.since_model += with_model is not None
        trial = Verdict(min(_TRIAL_DEPTH, self._max_tokens), with_model or 0)
        if cost.num_drafted < _MEASURED or (
            with_model is not None and cost.since_model >= _MODEL_TRIAL
        ):
            return trial
        verdicts = [replace(self._best(cost, o, batch), option=i) for i, o in enumerate(options)]
        best = max(verdicts, key=lambda verdict: verdict.speedup)
        if best.depth and cost.gain > 1.0:
            cost.idle = 0
            return best
        cost.idle += 1
        if cost.idle < cost.trial_after:
            return NONE
        cost.idle, cost.trial_after = 0, min(2 * cost.trial_after, _LAST_TRIAL)
        cost.gain = _HOPED_GAIN
        return best if best.depth else trial

    def note_draft(self, batch: int, depth: int, seconds: float) -> None:
        """The draft model went ``depth`` tokens deep for this batch."""
        cost = self._cost(batch)
        cost.since_model = 0
        cost.spent_s = seconds
        cost.draft_s = _towards(cost.draft_s, seconds / depth)

    def note_step(self, batch: int, num_drafted: int, num_tokens: int, seconds: float) -> None:
        """A step of ``batch`` decoding sequences checked ``num_drafted`` tokens, yielding ``num_tokens``.

        Seconds are the step's own, without those of a draft model.
        """
        cost = self._cost(batch)
        seconds_in_all, cost.spent_s = seconds + cost.spent_s, 0.0
        if num_drafted == 0:
            cost.num_plain += 1
            cost.since_plain = 0
            cost.plain_s = _towards(cost.plain_s, seconds, _PLAIN_WEIGHT)
        elif cost.num_plain:
            cost.num_drafted += 1
            cost.since_plain += 1
            cost.row_s = _towards(cost.row_s, max(seconds - cost.plain_s, 0.0) / num_drafted)
            gained = num_tokens * cost.plain_s
            cost.gain += _WEIGHT * (gained / (batch * seconds_in_all) - cost.gain)
            if cost.gain > _HOPED_GAIN:
                cost.trial_after = _FIRST_TRIAL

    def _cost(self, batch: int) -> _Cost:
        """Sizes up to 4 apart, larger ones by the power of two they do not exceed."""
        return self._costs.setdefault(
            batch if batch <= 4 else 1 << (batch - 1).bit_length(), _Cost()
        )

    def _best(self, cost: _Cost, option: Option, batch: int) -> Verdict:
        # A sequence below this rate would pay more for its first row than a token takes.
        least = cost.row_s * batch / cost.plain_s if cost.plain_s else 0.0
        worth = [rate for rate in option.rates if rate >= least]
        draft_s = cost.draft_s if option.uses_model else 0.0
        powers, gained, best, most = list(worth), 0.0, NONE, _LEAST_GAIN
        for depth in range(1, self._max_tokens + 1 if worth else 1):
            gained += sum(powers)
            powers = [power * rate for power, rate in zip(powers, worth, strict=True)]
            seconds = cost.plain_s + depth * (len(worth) * cost.row_s + draft_s)
            speedup = (1 + gained / batch) * cost.plain_s / seconds
            if speedup > most:
                most = speedup
                best = Verdict(depth, least_rate=least, speedup=speedup)
        return best


def _towards(old: float, new: float, weight: float = _WEIGHT) -> float:
    if not old:
        return new
    return old + weight * (min(new, _CLIP * old) - old)
