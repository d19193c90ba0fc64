"""How much of a step the BATCH class may take: whoever arrives waits for the step to end, and whoever decodes waits with it.

Owns the bounds and the costs they follow from, which are learnt from steps. While other classes were here
lately, BATCH adds about 8 ms to a step; alone it takes all it can use. What it adds is measured
against steps without it: now and then it sits one out. Pure Python.
"""

from penstock_engine.native.scheduling.limits import Limits
from penstock_engine.native.scheduling.plan import StepPlan

_STEP_S, _LEAST_PART = 0.008, 0.5
"""What BATCH may add to a step: this, or where steps are long this part of one without it. benchmarks/backfill.py:
with steps of 45 ms, half of all first tokens came 14 % later than without batch work; with 150 ms 22 %."""
_LATELY_S = 10.0
_LEAST_TOKENS = 32
"""Fewer of a prompt are more overhead than work."""
_TELLING_TOKENS = 128
"""From so many on a step's time is that of its prompts, whatever is decoded in it."""
_LARGEST_PART, _FIRST_PART = 4, 12
_ALONE_EVERY, _ALONE_FIRST = 64, 8
"""Steps with BATCH beside others after which one without it is measured."""
_WEIGHT = 0.2


class BatchShare:
    """Bounds on what a step computes of class BATCH."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._token_s = 0.0
        """Of a prompt; 0 while unknown, as are the next two."""
        self._row_s = 0.0
        """That a sequence of class BATCH adds to a step."""
        self._alone_s = 0.0
        """Of a step in which others decode, without BATCH."""
        self._others_at = float("-inf")
        self._now = 0.0
        self._since_alone = _ALONE_EVERY - _ALONE_FIRST

    def rows(self, *, beside: bool) -> int:
        """Sequences that may decode; ``beside`` tells whether sequences of other classes do, too."""
        if not self._is_bounded:
            return self._limits.max_batch
        if beside and self._since_alone >= _ALONE_EVERY:
            return 0
        if not self._row_s:
            return self._limits.max_batch
        return max(int(self._room_s / self._row_s), 1)

    def tokens(self, rows: int) -> int:
        """Prompt tokens that may be computed beside so many rows of class BATCH."""
        if not self._token_s:
            return max(self._limits.max_batched_tokens // _FIRST_PART, 1)
        most = max(self._limits.max_batched_tokens // _LARGEST_PART, 1)
        if not self._is_bounded:
            return most
        wanted = int((self._room_s - rows * self._row_s) / self._token_s)
        if wanted < _LEAST_TOKENS:
            wanted = 0 if rows else _LEAST_TOKENS
        return min(wanted, most)

    def note(self, plan: StepPlan, seconds: float, now: float) -> None:
        """Learn from a step."""
        self._now = now
        rows = sum(chunk.is_decode for chunk in plan.chunks if chunk.sample.is_batch)
        others = sum(chunk.is_decode for chunk in plan.chunks if not chunk.sample.is_batch)
        has_batch = any(chunk.sample.is_batch for chunk in plan.chunks)
        prompts, alone_s = plan.num_prefill_tokens, self._alone_s
        if len(plan.chunks) > rows and not all(c.sample.is_batch for c in plan.chunks):
            self._others_at = now
        if prompts >= (_TELLING_TOKENS if rows + others else _LEAST_TOKENS):
            self._token_s = _smooth(self._token_s, seconds / plan.num_tokens)
        elif others and not has_batch and not prompts:
            self._alone_s, self._since_alone = _smooth(alone_s, seconds), 0
        elif others and rows and alone_s and (self._token_s or not prompts):
            added_s = seconds - prompts * self._token_s - alone_s
            self._row_s = _smooth(self._row_s, max(added_s, 0.0) / rows)
        self._since_alone += bool(others and has_batch)

    @property
    def _is_bounded(self) -> bool:
        return self._now - self._others_at < _LATELY_S

    @property
    def _room_s(self) -> float:
        return max(_STEP_S, _LEAST_PART * self._alone_s)


def _smooth(old: float, new: float) -> float:
    return new if not old else old + _WEIGHT * (new - old)
