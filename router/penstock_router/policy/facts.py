"""What a decision is made from and what it consists of: plain, frozen, nothing that runs.

A decision depends on these values, a clock and a seed alone, so it can be replayed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class WorkerView(NamedTuple):
    """One worker as the router knows it at one moment. A named tuple: many are made a second.

    Attributes:
        confidence: how far the index is believed, by sync state, in [0, 1].
        trust: smoothed actual over predicted cached tokens.
        backlog_tokens: prompt tokens still to be computed there before a new request's.
        planned_s: prefill seconds of requests that wait in the router and mean to go there first;
            ``planned`` of them.
        base_s: seconds of a prefill of no tokens; ``slope_s`` seconds for each token more, and
            ``pair_s`` for each pair of a computed token with one before it (attention).
        utilisation: share of its time spent in prefill.
        step_s: seconds of a decode step for each token it yields; 0 if unknown.
        max_batch: requests that it can decode at once; 0 if unknown.
        output_tokens: tokens a request usually gets here.
        excluded_because: why it cannot be chosen; empty if it can.
    """

    worker_id: str
    epoch: str
    seq: int = 0
    sync_state: str = "LIVE"
    confidence: float = 1.0
    trust: float = 1.0
    network_s: float = 0.0
    backlog_tokens: int = 0
    running: int = 0
    waiting: int = 0
    base_s: float = 0.002
    slope_s: float = 1 / 4000
    utilisation: float = 0.0
    step_s: float = 0.0
    output_tokens: float = 64.0
    pair_s: float = 0.0
    planned_s: float = 0.0
    planned: int = 0
    max_batch: int = 0
    used_blocks: int = 0
    capacity_blocks: int = 0
    block_tokens: int = 32
    excluded_because: str = ""


class Match(NamedTuple):
    """How much of a prompt a worker holds, and what is being computed there.

    ``eta`` is the clock time at which ``pending_tokens`` more will be there.
    """

    matched_tokens: int = 0
    pending_tokens: int = 0
    eta: float = 0.0
    pending_requests: frozenset[str] = frozenset()


NO_MATCH = Match()


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """What a decision needs to know about a request.

    Attributes:
        divergent: hash of the first block that no candidate holds; None if there is none.
        max_tokens: most new tokens it may get.
        replicas: workers that should hold a copy of its hot prefix.
        adapter_loads: seconds until its adapter is in memory, by worker; whom it does not name has it.
    """

    request_id: str
    model: str
    prompt_tokens: int
    num_blocks: int
    matches: Mapping[str, Match]
    divergent: int | None = None
    max_tokens: int = 256
    excluded: frozenset[str] = frozenset()
    replicas: frozenset[str] = frozenset()
    adapter_loads: Mapping[str, float] = field(default_factory=dict)


class Candidate(NamedTuple):
    """One worker in a decision; seconds that add up to ``total_s``.

    Fields as in ``penstock.routing.v1.Candidate``. A named tuple, since one is made for each worker
    in each decision.
    """

    worker_id: str
    epoch: str
    seq: int
    sync_state: str
    matched_tokens: int
    trusted_tokens: float
    uncached_tokens: float
    network_s: float
    backlog_s: float
    prefill_s: float
    pending_s: float
    externality_s: float
    tpot_s: float
    kv_pressure_s: float
    total_s: float
    excluded_because: str = ""
    lateness_s: float = 0.0
    replication_s: float = 0.0
    adapter_load_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        """Time to first token that is expected here."""
        known_s = self.network_s + self.backlog_s + self.prefill_s + self.pending_s
        return known_s + self.adapter_load_s


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes. Why, ``policy.explain`` says: it costs as much again.

    ``quickest`` is who has least to compute for it; ``waits_for`` names the requests whose prefill
    the chosen worker's price counts on.
    """

    chosen: Candidate | None
    quickest: Candidate | None = None
    waits_for: frozenset[str] = frozenset()


class Ranking(NamedTuple):
    """Who stood where in a decision. ``candidates`` are best first, excluded ones last."""

    candidates: tuple[Candidate, ...]
    reason: str
    margin_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision with its reasons. ``candidates`` are best first, excluded ones last."""

    decision: Decision
    candidates: tuple[Candidate, ...]
    reason: str
    margin_s: float = 0.0
    counterfactual_worker_id: str = ""
    counterfactual_loss_s: float = 0.0
