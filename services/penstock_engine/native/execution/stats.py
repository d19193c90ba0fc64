"""Smoothed rates of an engine's steps.

Owns the EWMA figures of ``EngineState``; is told of each step and knows nothing else. Pure Python.
"""

from penstock_engine.native.scheduling.plan import StepPlan, StepResult

_WEIGHT = 0.1


class StepStats:
    """Rates over about the last ten steps of each kind."""

    def __init__(self) -> None:
        self.step_s = 0.0
        """Seconds of a step that only decodes."""
        self.prefill_tokens_per_s = 0.0
        self.tokens_per_step = 1.0
        """Tokens a decoding sequence gains in a step."""

    def note(self, plan: StepPlan, result: StepResult) -> None:
        """Take a step in. A mixed step's time is split by tokens."""
        prefill, seconds = plan.num_prefill_tokens, result.seconds
        if prefill == 0:
            self.step_s = _smooth(self.step_s, seconds)
        elif seconds > 0:
            rate = plan.num_tokens / seconds
            self.prefill_tokens_per_s = _smooth(self.prefill_tokens_per_s, rate)
        if result.drawn:
            gained = sum(len(drawn.token_ids) for drawn in result.drawn) / len(result.drawn)
            self.tokens_per_step = _smooth(self.tokens_per_step, gained)


def _smooth(old: float, new: float) -> float:
    return new if not old else old + _WEIGHT * (new - old)
