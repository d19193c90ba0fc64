"""How late a first token can come at most, whatever is decided for the requests before it. Pure.

Of several workers one has no more planned on it than the mean. What a request costs there, were it
the slowest of all, with the longest backlog and nothing of the prompt, is more than the least cost;
a choice costs no more than that and a tie, and takes no longer than it costs.
"""

from collections.abc import Sequence

from penstock_router.admission.ticket import Ticket
from penstock_router.policy.cost import CostParams, backlog_s, scene, weigh
from penstock_router.policy.facts import RoutingRequest, WorkerView
from penstock_router.policy.panel import Panel


class Latest:
    """Upper bounds for requests of one pool, with at most ``before`` planned before any of them."""

    def __init__(self, panel: Panel, before: Sequence[Ticket], params: CostParams) -> None:
        totals = panel.totals
        self._params = params
        self._worst = _worst(panel, params)
        self._before_s = sum(self._prefill_s(t.prompt_tokens) for t in before) / totals.workers
        # Nothing of the prompt is there or coming, so the clock does not matter.
        self._at = scene(totals._replace(waiting=totals.waiting + len(before)), 0.0, params)

    def ttft_s(self, request: RoutingRequest) -> float:
        """Seconds from now to its first token."""
        p, worst = self._params, self._worst
        # Only where replication is worth more than all it saves can a choice cost less than it takes.
        if p.replication > 1:
            return float("inf")
        # Whoever waits for blocks under way does so for no longer than this; then for its adapter.
        others = self._at.delayed + p.shared * worst.running
        alone_s = self._prefill_s(request.prompt_tokens)
        wait_s = p.pending * alone_s * (1 + p.externality * others)
        wait_s += p.adapter_load * max(request.adapter_loads.values(), default=0.0)
        late = worst._replace(planned_s=worst.planned_s + self._before_s + wait_s)
        [candidate] = weigh((late,), {}, request, self._at, p)
        share = max(p.tie_share, p.tie_ttft_share)  # of the whole cost at most
        return candidate.total_s + max(p.tie_s, share * candidate.total_s)

    def _prefill_s(self, tokens: int) -> float:
        worst = self._worst
        return worst.base_s + worst.slope_s * tokens + worst.pair_s * tokens * tokens / 2


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
