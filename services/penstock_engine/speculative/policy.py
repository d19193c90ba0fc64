"""How many tokens to draft, and whether to: what a draft is worth against what it costs.

Owns the measured costs by batch size and the decision. It is told batch sizes, seconds and
acceptance rates, and knows neither requests nor drafters nor clocks. Pure Python.

A step that decodes ``b`` sequences takes ``a`` seconds, each drafted row ``m`` more, each further
depth of a draft model ``d``. A sequence whose drafts stand with rate ``r`` gains ``r + r^2 + ... +
r^k`` tokens from ``k`` drafts. The depth with the most tokens a second wins; a batch where none
beats plain decoding is not drafted for. Seconds are those of whole turns, whatever looking for
drafts took included, and medians of the last few, because neighbours make some steps slow.

Forecasts may be wrong, and trials cost. So drafting lives on a purse of seconds: a small share of
the time of plain steps goes in, and what a drafted step lost against plain ones comes out, or goes
in if it gained. While the purse is empty nothing is drafted: whatever happens, drafting costs no more
than that share. Plain steps are measured now and then while drafting, and drafts are tried now and
then while not, ever more rarely where they keep failing.

Source: expected tokens of a draft, https://arxiv.org/abs/2211.17192, equation 1.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

_LEAST_GAIN, _LEAST_GAIN_OF_MANY = 1.03, 1.08
"""Tokens a second over those of plain decoding from which on drafting is worth its uncertainty; in
a batch of more than ``_FEW`` it costs more to be wrong."""
_FEW = 4
_BEST_RATE = 0.95
"""What a drafter can be hoped to reach; if even that does not pay, nothing is drafted at all."""
_MEASURED = 3
"""Steps of a kind before their cost is believed."""
_WINDOW = 9
"""Latest steps whose median is the cost."""
_PLAIN_EVERY = 32
"""Drafted steps between two plain ones that are measured."""
_TRIAL_STEPS = 5
_FIRST_TRIAL, _LAST_TRIAL = 64, 2048
"""Steps without drafts before they are tried once more; doubled with each trial that fails."""
_MODEL_TRIAL = 512
"""Steps without the draft model before its cost is measured once more."""
_TRIAL_DEPTH, _TRIAL_DEPTH_OF_MANY = 3, 1
_LONGEST_REST, _LONGEST_REST_OF_MANY = 16, 64
"""Steps without looking for drafts after looking did not pay; doubled up to this many."""
_SHARE, _SHARE_OF_MANY = 0.01, 0.005
"""Of the time of plain steps that drafting may cost. A batch pays for looking for drafts, too, sequence by
sequence, and what its noisy steps lose is measured less well."""
_FIRST_PURSE, _LARGEST_PURSE, _DEEPEST_DEBT = 4.0, 6.0, 2.0
"""In plain steps."""
_DEEPEST_DEBT_OF_MODEL = 32.0
"""A draft model that reads the prompts of a whole batch may lose that at one go, and has to earn it."""
_CLIP = 2.0
"""How many times what was expected a slow drafted step counts for at most."""


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


class _Median:
    """The median of the last few numbers; 0 while there is none."""

    def __init__(self) -> None:
        self._numbers: deque[float] = deque(maxlen=_WINDOW)
        self.value = 0.0

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: float) -> None:
        self._numbers.append(number)
        self.value = sorted(self._numbers)[len(self._numbers) // 2]


@dataclass(slots=True)
class _Cost:
    """What was measured in batches of about one size, and what drafting may still lose. Seconds."""

    plain: _Median = field(default_factory=_Median)
    row: _Median = field(default_factory=_Median)
    draft: _Median = field(default_factory=_Median)
    purse_s: float = 0.0
    model_purse_s: float = 0.0
    spent_s: float = 0.0
    since_plain: int = 0
    since_drafts: int = 0
    since_model: int = _MODEL_TRIAL
    trial_steps: int = 0
    trial_after: int = _FIRST_TRIAL
    rest: int = 0
    next_rest: int = 1

    def can_pay(self, option: Option) -> bool:
        """Whether there is something left to try this option with."""
        return (
            bool(option.rates) and (self.model_purse_s if option.uses_model else self.purse_s) > 0
        )

    def pay(self, seconds: float, *, model: bool) -> None:
        """Put seconds into a purse, or take them out if negative."""
        plain_s, most = self.plain.value, _LARGEST_PURSE * self.plain.value
        if model:
            least = -_DEEPEST_DEBT_OF_MODEL * plain_s
            self.model_purse_s = max(min(self.model_purse_s + seconds, most), least)
        else:
            self.purse_s = max(min(self.purse_s + seconds, most), -_DEEPEST_DEBT * plain_s)


class DraftPolicy:
    """Decides once a step; is told afterwards what the step cost."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._costs: dict[int, _Cost] = {}

    def may_pay(self, batch: int, *, needs_model: bool) -> bool:
        """Whether looking for drafts is worth it at all; cheap, to be asked once a step.

        ``needs_model`` tells that no drafts can be had without the draft model's time.
        """
        cost = self._cost(batch)
        cost.since_drafts += 1
        purse_s = cost.model_purse_s if needs_model else max(cost.purse_s, cost.model_purse_s)
        if len(cost.plain) < _MEASURED or cost.since_plain >= _PLAIN_EVERY or purse_s <= 0:
            return False
        if self._tries(cost):
            return True
        if cost.rest:
            cost.rest -= 1
            return False
        dream = Option([_BEST_RATE] * batch, needs_model)
        if self._best(cost, dream, batch).depth:
            return True
        self._rest(cost, batch)
        return False

    def decide(self, batch: int, options: Sequence[Option]) -> Verdict:
        """Which of the options to take, how deep, in a batch of ``batch`` sequences."""
        cost = self._cost(batch)
        affordable = [i for i, option in enumerate(options) if cost.can_pay(option)]
        if len(cost.plain) < _MEASURED or not affordable:
            self._rest(cost, batch)  # what the purse was for was not found
            cost.trial_steps = 0
            return NONE
        with_model = next((i for i in affordable if options[i].uses_model), None)
        cost.since_model += with_model is not None
        depth = _TRIAL_DEPTH if batch <= _FEW else _TRIAL_DEPTH_OF_MANY
        trial = Verdict(min(depth, self._max_tokens), affordable[0])
        if with_model is not None and cost.since_model >= _MODEL_TRIAL:
            return replace(trial, option=with_model)
        if len(cost.row) < _MEASURED:
            return trial
        verdicts = [replace(self._best(cost, options[i], batch), option=i) for i in affordable]
        best = max(verdicts, key=lambda verdict: verdict.speedup)
        if best.depth:
            cost.next_rest = 1
            return best
        if self._tries(cost):
            cost.trial_steps -= 1
            return trial
        self._rest(cost, batch)
        return NONE

    def note_draft(self, batch: int, depth: int, seconds: float, *, is_steady: bool) -> None:
        """The draft model went ``depth`` tokens deep for this batch, reading prompts unless steady."""
        cost = self._cost(batch)
        cost.spent_s = seconds
        if is_steady:
            cost.since_model = 0
            cost.draft.add(seconds / depth)

    def note_step(
        self, batch: int, num_drafted: int, num_tokens: int, seconds: float, steps: int = 1
    ) -> None:
        """A step of ``batch`` decoding sequences checked ``num_drafted`` tokens, yielding ``num_tokens``.

        What a step without drafts yields need not be told, and one may stand for several ``steps`` in a row.
        Seconds are those of the whole turn, a draft model's included.
        """
        cost = self._cost(batch)
        drafting_s, cost.spent_s = cost.spent_s, 0.0
        if num_drafted == 0:
            cost.plain.add(seconds)
            plain_s, cost.since_plain = cost.plain.value, 0
            share = _SHARE if batch <= _FEW else _SHARE_OF_MANY
            earned = (share * steps if len(cost.plain) > 1 else _FIRST_PURSE) * plain_s
            cost.pay(earned, model=True)
        elif len(cost.plain):
            plain_s, cost.since_drafts = cost.plain.value, 0
            cost.since_plain += 1
            cost.row.add(max(seconds - drafting_s - plain_s, 0.0) / num_drafted)
            expected_s = plain_s + drafting_s + num_drafted * cost.row.value
            earned = num_tokens * plain_s / batch - min(seconds, _CLIP * expected_s)
            if earned > (_least_gain(batch) - 1) * plain_s:  # less may be luck
                cost.trial_after = _FIRST_TRIAL
        else:
            return
        cost.pay(earned, model=drafting_s > 0)

    def _cost(self, batch: int) -> _Cost:
        """Sizes up to 4 apart, larger ones by the power of two they do not exceed."""
        return self._costs.setdefault(
            batch if batch <= _FEW else 1 << (batch - 1).bit_length(), _Cost()
        )

    def _tries(self, cost: _Cost) -> bool:
        """Whether drafts are on trial, whatever is forecast."""
        if len(cost.row) < _MEASURED or cost.trial_steps:
            return True
        if cost.since_drafts < cost.trial_after:
            return False
        cost.trial_steps, cost.trial_after = _TRIAL_STEPS, min(2 * cost.trial_after, _LAST_TRIAL)
        return True

    def _rest(self, cost: _Cost, batch: int) -> None:
        longest = _LONGEST_REST if batch <= _FEW else _LONGEST_REST_OF_MANY
        cost.rest, cost.next_rest = cost.next_rest, min(2 * cost.next_rest, longest)

    def _best(self, cost: _Cost, option: Option, batch: int) -> Verdict:
        # A sequence below this rate would pay more for its first row than a token takes.
        plain_s, row_s = cost.plain.value, cost.row.value
        least = row_s * batch / plain_s if plain_s else 0.0
        worth = [rate for rate in option.rates if rate >= least]
        draft_s = cost.draft.value if option.uses_model else 0.0
        most = _least_gain(batch)
        powers, gained, best = list(worth), 0.0, NONE
        for depth in range(1, self._max_tokens + 1 if worth else 1):
            gained += sum(powers)
            powers = [power * rate for power, rate in zip(powers, worth, strict=True)]
            seconds = plain_s + depth * (len(worth) * row_s + draft_s)
            speedup = (1 + gained / batch) * plain_s / seconds
            if speedup > most:
                most = speedup
                best = Verdict(depth, least_rate=least, speedup=speedup)
        return best


def _least_gain(batch: int) -> float:
    return _LEAST_GAIN if batch <= _FEW else _LEAST_GAIN_OF_MANY
