"""How much of a step the BATCH class may fill with its prompts: whoever arrives waits for the step to end.

Owns the bound, which follows from how fast the engine turned out to be. Pure Python.
"""

from penstock_engine.native.scheduling.limits import Limits
from penstock_engine.native.scheduling.plan import StepPlan

_STEP_S = 0.015
"""What such a step should take. benchmarks/backfill.py: with steps of 45 ms, half of all first tokens came 14 %
later than without batch work, which is half a step; with 150 ms 22 %."""
_LEAST_TOKENS = 32
"""Fewer are more overhead than work, and tell nothing about the engine's speed."""
_LARGEST_PART, _FIRST_PART = 4, 12
_WEIGHT = 0.2


class BatchShare:
    """Prompt tokens of class BATCH in one step."""

    def __init__(self, limits: Limits) -> None:
        self._most = max(limits.max_batched_tokens // _LARGEST_PART, 1)
        self._tokens_per_s = 0.0
        self.tokens = max(limits.max_batched_tokens // _FIRST_PART, 1)

    def note(self, plan: StepPlan, seconds: float) -> None:
        """Learn from a step with prompts in it, whoever's they were."""
        if plan.num_prefill_tokens < _LEAST_TOKENS or seconds <= 0:
            return
        rate, known = plan.num_tokens / seconds, self._tokens_per_s
        self._tokens_per_s = known + _WEIGHT * (rate - known) if known else rate
        wanted = max(int(self._tokens_per_s * _STEP_S), _LEAST_TOKENS)
        self.tokens = min(wanted, self._most)
