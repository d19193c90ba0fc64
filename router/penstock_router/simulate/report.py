"""What a simulation showed, in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock_router.simulate.fleet import Outcome

_SLICES = 60


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy on one trace.

    Attributes:
        hit_rate: cached share of all prompt tokens.
        prefill_utilization: share of the workers' time spent in prefill.
    """

    policy: str
    hit_rate: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    prefill_utilization: float
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """A summary with what its plots are drawn from, and what the run itself took.

    Attributes:
        ttft_s: every served request's, ascending.
        hit_rate_at: (seconds from the start, hit rate of the requests that came then).
        rejected: requests that were refused.
    """

    summary: Summary
    ttft_s: tuple[float, ...]
    hit_rate_at: tuple[tuple[float, float], ...]
    rejected: int
    wall_s: float
    events: int


def result(policy: str, outcome: Outcome, wall_s: float) -> Result:
    """The numbers of an outcome."""
    ttft = sorted(job.first_token_s - job.request.arrival_s for job in outcome.jobs)
    prompt = sum(job.request.prompt_tokens for job in outcome.jobs)
    cached = sum(job.cached_tokens for job in outcome.jobs)
    span = max(outcome.end_s, 1e-9)
    summary = Summary(
        policy=policy,
        hit_rate=cached / max(prompt, 1),
        ttft_mean_s=sum(ttft) / max(len(ttft), 1),
        ttft_p50_s=percentile(ttft, 0.5),
        ttft_p90_s=percentile(ttft, 0.9),
        ttft_p99_s=percentile(ttft, 0.99),
        prefill_utilization=outcome.busy_s / (outcome.workers * span),
        requests_per_s=len(ttft) / span,
    )
    return Result(
        summary, tuple(ttft), _over_time(outcome), len(outcome.rejected), wall_s, outcome.events
    )


def percentile(ascending: Sequence[float], share: float) -> float:
    """The least sample that this share of all samples does not exceed; 0 without samples."""
    if not ascending:
        return 0.0
    return ascending[max(-(-len(ascending) * int(share * 100) // 100) - 1, 0)]


def _over_time(outcome: Outcome) -> tuple[tuple[float, float], ...]:
    last = max((job.request.arrival_s for job in outcome.jobs), default=0.0)
    width = max(last / _SLICES, 1e-9)
    slices: dict[int, list[int]] = {}
    for job in outcome.jobs:
        slot = slices.setdefault(min(int(job.request.arrival_s / width), _SLICES - 1), [0, 0])
        slot[0] += job.cached_tokens
        slot[1] += job.request.prompt_tokens
    return tuple(((n + 0.5) * width, c / max(p, 1)) for n, (c, p) in sorted(slices.items()))
