"""Figures that TensorRT-LLM gives, of a request and of its iterations, as ours. Pure.

Owns their names. None of them is pinned to a version, so each may be missing: what is not told is
None, never an error.
"""

from dataclasses import dataclass, replace
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """Of one sample. Seconds by the engine's own clock; None where it did not tell."""

    queue_s: float | None = None
    prefill_s: float | None = None
    drafted_tokens: int | None = None
    accepted_draft_tokens: int | None = None

    @classmethod
    def of(cls, metrics: object) -> "RequestFigures":
        """Read ``CompletionOutput.request_perf_metrics``."""
        timing = getattr(metrics, "timing_metrics", None)
        arrived = _seconds(timing, "arrival_time")
        scheduled = _seconds(timing, "first_scheduled_time")
        first = _seconds(timing, "first_token_time")
        drafts = getattr(metrics, "speculative_decoding", None)
        return cls(
            queue_s=_between(arrived, scheduled),
            prefill_s=_between(scheduled, first),
            drafted_tokens=_count(drafts, "total_draft_tokens"),
            accepted_draft_tokens=_count(drafts, "total_accepted_draft_tokens"),
        )

    def with_drafts(self, tokens: int, steps: int, draft_tokens: int) -> "RequestFigures":
        """Drafts counted from the steps that ``tokens`` took, where the engine told of none.

        Each step gives a token of its own besides the accepted drafts; every one but the first, which
        computes the prompt, is taken to have had ``draft_tokens``.
        """
        if self.drafted_tokens or draft_tokens < 1 or steps < 1:
            return self
        accepted = max(tokens - steps, 0)
        drafted = max((steps - 1) * draft_tokens, accepted)
        return replace(self, drafted_tokens=drafted, accepted_draft_tokens=accepted)


@dataclass(frozen=True, slots=True)
class IterationFigures:
    """Of one iteration of the engine."""

    step_s: float | None = None
    num_context_tokens: int = 0
    num_generating: int = 0
    num_paused: int = 0
    tokens_per_step: float | None = None
    used_blocks: int | None = None
    max_blocks: int | None = None

    @classmethod
    def of(cls, stats: object) -> "IterationFigures":
        """Read one item of ``get_stats_async``."""
        if not isinstance(stats, dict):
            return cls()
        batch, cache = _part(stats, "inflightBatchingStats"), _part(stats, "kvCacheStats")
        drafts = _part(stats, "specDecodingStats") or _part(stats, "specDecStats")
        step_ms = _number(stats, "iterLatencyMS")
        decoded = _number(batch, "avgNumDecodedTokensPerIter") or _number(
            drafts, "acceptanceLength"
        )
        used, most = _number(cache, "usedNumBlocks"), _number(cache, "maxNumBlocks")
        return cls(
            step_s=None if step_ms is None else step_ms / 1000,
            num_context_tokens=int(_number(batch, "numCtxTokens") or 0),
            num_generating=int(_number(batch, "numGenRequests") or 0),
            num_paused=int(_number(batch, "numPausedRequests") or 0),
            tokens_per_step=decoded or None,
            used_blocks=None if used is None else int(used),
            max_blocks=None if most is None else int(most),
        )


class Rates:
    """Smoothed over about the last ten iterations of each kind, with the time of the last one."""

    def __init__(self) -> None:
        self.step_s = 0.0
        self.prefill_tokens_per_s = 0.0
        self.tokens_per_step = 1.0
        self.preemptions = 0
        self.latest = IterationFigures()
        self._paused = 0
        self._heard_at: float | None = None

    def note(self, figures: IterationFigures, now: float) -> None:
        """Take an iteration in. One that prefills tells the prefill rate, any other the step's time."""
        self.latest, self._heard_at = figures, now
        self.preemptions += max(figures.num_paused - self._paused, 0)
        self._paused = figures.num_paused
        if figures.step_s and figures.num_context_tokens:
            rate = (figures.num_context_tokens + figures.num_generating) / figures.step_s
            self.prefill_tokens_per_s = _smooth(self.prefill_tokens_per_s, rate)
        elif figures.step_s and figures.num_generating:
            self.step_s = _smooth(self.step_s, figures.step_s)
        if figures.tokens_per_step:
            self.tokens_per_step = _smooth(self.tokens_per_step, figures.tokens_per_step)

    def note_speed(self, tokens_per_step: float) -> None:
        """A request ended that gained this many tokens a step."""
        self.tokens_per_step = _smooth(self.tokens_per_step, tokens_per_step)

    def age_s(self, now: float) -> float | None:
        """Seconds since the engine last told anything; None if it never did."""
        return None if self._heard_at is None else max(now - self._heard_at, 0.0)


def _smooth(old: float, new: float) -> float:
    return new if not old else old + 0.1 * (new - old)


def _seconds(part: object, name: str) -> float | None:
    value = getattr(part, name, None)
    # Zero is the engine's word for "not yet".
    return value.total_seconds() if isinstance(value, timedelta) and value else None


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(end - start, 0.0)


def _count(part: object, name: str) -> int | None:
    value = getattr(part, name, None)
    return value if isinstance(value, int) else None


def _part(stats: object, name: str) -> dict[str, object]:
    value = stats.get(name) if isinstance(stats, dict) else None
    return value if isinstance(value, dict) else {}


def _number(part: dict[str, object], name: str) -> float | None:
    value = part.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
