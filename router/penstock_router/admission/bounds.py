"""How late a first token can come at most, whatever is decided for the requests before it. Pure.

Of several workers one has no more planned on it than the mean. What a request costs there, were it
the slowest of all, with the longest backlog and nothing of the prompt, is more than the least cost;
a choice costs no more than that and a tie, and takes no longer than it costs.
"""

from typing import NamedTuple

from penstock_router.policy.cost import CostParams, backlog_s, scene, weigh
from penstock_router.policy.facts import RoutingRequest, WorkerView
from penstock_router.policy.panel import Panel


class Bound(NamedTuple):
    """Upper bounds of a request: seconds to its first token, and of its prefill."""

    ttft_s: float
    prefill_s: float


class Latest:
    """Upper bounds for requests of one pool."""

    def __init__(self, panel: Panel, now: float, params: CostParams) -> None:
        self._params = params
        self._totals = panel.totals
        self._now = now
        self._worst = _worst(panel, params)

    def of(self, request: RoutingRequest, count: int, before_s: float) -> Bound:
        """Of a request, with so many more planned before it, of so many seconds in all."""
        p, totals, worst = self._params, self._totals, self._worst
        at = scene(totals._replace(waiting=totals.waiting + count), self._now, p)
        planned_s = worst.planned_s + before_s / totals.workers
        [alone] = weigh((worst._replace(planned_s=planned_s),), {}, request, at, p)
        # Whoever waits for blocks under way does so for no longer than this.
        others = at.delayed + p.shared * worst.running
        planned_s += p.pending * alone.prefill_s * (1 + p.externality * others)
        [late] = weigh((worst._replace(planned_s=planned_s),), {}, request, at, p)
        # Only where replication is worth more than all it saves can a choice cost less than it takes.
        ttft_s = late.total_s + max(p.tie_s, p.tie_share * late.total_s)
        return Bound(ttft_s if p.replication <= 1 else float("inf"), alone.prefill_s)


def _worst(panel: Panel, params: CostParams) -> WorkerView:
    views = panel.open
    return WorkerView(
        worker_id="",
        epoch="",
        network_s=max(v.network_s for v in views),
        running=max(v.running for v in views),
        base_s=max(v.base_s for v in views),
        slope_s=max(v.slope_s for v in views),
        pair_s=max(v.pair_s for v in views),
        step_s=max(v.step_s for v in views),
        output_tokens=max(v.output_tokens for v in views),
        planned_s=max(backlog_s(v, params) for v in views),
        used_blocks=max(v.used_blocks for v in views),
        capacity_blocks=min((v.capacity_blocks for v in views if v.capacity_blocks), default=0),
        block_tokens=min(v.block_tokens for v in views),
    )
