"""What it costs to run a request on a worker: ``J`` in seconds, least wins.

    J = network + backlog + prefill(U) + pending + adapter load    the request's own time to first token, T
      + lateness                                        what T costs beyond its seconds: late * T^2
      + externality                                     what its prefill costs everybody else
      + tpot + kv pressure - replication

``prefill(U) = base + slope * U + pair * U * (N - U / 2)`` for U uncached of N prompt tokens: linear
in what is computed, and each token attends to those before it.
``externality = prefill(U) * (busy * rho^pooled / (1 - rho) + queued * waiting + shared * running)``: work is
pooled, so a second of prefill anywhere delays those who come in a fleet of utilisation rho, and those
who wait; on its own worker it slows those that decode. ``replication`` takes the externality back
where a copy of a hot prefix is wanted.

Pure. Each term has a weight, so that each can be switched off.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import NamedTuple, Self

from penstock_router.policy.facts import NO_MATCH, Candidate, Match, RoutingRequest, WorkerView


@dataclass(frozen=True, slots=True)
class CostParams:
    """The policy's parameters.

    Attributes:
        backlog, pending, externality, tpot, kv_pressure, replication, adapter_load: weights of the
            terms; 0 switches one off.
        lateness: cost of a squared second to the first token; at 0.2 the 5th second costs three times the first.
        busy, queued, shared: parts of the externality, by requests to come, waiting and decoding.
        busiest: upper bound of ``1 / (1 - utilisation)``.
        kv_knee: occupancy at which memory begins to weigh; ``kv_scale_s`` how much.
        pooled: power of the utilisation in ``busy``'s part.
        tie_s, tie_ttft_share, tie_share: candidates this close to the best count as equal: seconds, a
            share of its time to first token, a share of all its cost. Of that most is much the same
            for all, so it is there for earlier policies only.
        trust: 0 takes workers' hits as promised, whatever became of earlier promises.
    """

    backlog: float = 1.0
    pending: float = 1.0
    externality: float = 1.0
    tpot: float = 0.1
    kv_pressure: float = 1.0
    replication: float = 1.0
    lateness: float = 0.2
    busy: float = 22.0
    queued: float = 0.1
    shared: float = 0.01
    busiest: float = 4.0
    kv_knee: float = 0.8
    kv_scale_s: float = 0.05
    tie_s: float = 0.001
    tie_ttft_share: float = 0.02
    tie_share: float = 0.0
    pooled: float = 4.0
    adapter_load: float = 1.0
    trust: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """The defaults with what ``name=value,name=value`` says. Raises ValueError for nonsense."""
        return cls().with_changes(text)

    def with_changes(self, text: str) -> Self:
        """These with what ``name=value,name=value`` says. Raises ValueError for nonsense."""
        known = {f.name for f in fields(self)}
        changes: dict[str, float] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, sign, value = part.partition("=")
            if not sign or name.strip() not in known:
                raise ValueError(f"{part!r} sets none of {', '.join(sorted(known))}")
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                raise ValueError(f"{part!r} sets {name.strip()} to no number")
            changes[name.strip()] = number
        return replace(self, **changes)

    def digest(self) -> str:
        """Names these parameters in decision records."""
        return hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:16]


class Scene(NamedTuple):
    """What is common to all candidates of a decision.

    ``now`` is the clock, ``best_step_s`` the least seconds a token among them, ``delayed`` how many
    requests, waiting or to come, a second of work anywhere delays.
    """

    now: float
    best_step_s: float
    delayed: float


class Totals(NamedTuple):
    """What a scene is made of: sums over its workers, and the least seconds of a decode step."""

    workers: int
    utilisation: float
    waiting: int
    best_step_s: float


def totals(workers: Sequence[WorkerView]) -> Totals:
    """The totals of these workers."""
    return Totals(
        len(workers),
        math.fsum([w.utilisation for w in workers]),
        sum([w.waiting + w.planned for w in workers]),
        min([w.step_s for w in workers if w.step_s], default=0.0),
    )


def scene(of: Totals, now: float, p: CostParams) -> Scene:
    """The scene of a decision among workers with these totals.

    Work is pooled: a request that comes later may go to any of several workers, so a second of
    prefill spent on one of them delays as many of those to come as wait in such a queue, and they
    are few until the fleet's utilisation rho is high: ``rho ** sqrt(2 * (n + 1)) / (1 - rho)``. In
    a large fleet n is what caches leave a request to choose among: ``pooled`` is 4 for seven. It
    delays its share of those that wait now, too.

    Source: Sakasegawa, "An approximation formula Lq = alpha rho^beta / (1 - rho)", 1977.
    """
    rho = min(of.utilisation / of.workers, 1 - 1 / p.busiest)
    waiting = of.waiting / of.workers
    delayed = p.busy * rho**p.pooled / (1 - rho) + p.queued * waiting
    return Scene(now, of.best_step_s, delayed)


def weigh(
    workers: Iterable[WorkerView],
    matches: Mapping[str, Match],
    request: RoutingRequest,
    at: Scene,
    p: CostParams,
) -> list[Candidate]:
    """What the request costs on each of the workers, in their order.

    ``matches`` says what they hold and compute of it; whom it does not name holds nothing.
    """
    # Most of a decision's time passes here, so tuples are taken apart and made as such: attributes
    # and the constructor of a named tuple would take half as long again.
    prompt, most, replicas = request.prompt_tokens, request.max_tokens, request.replicas
    loads = request.adapter_loads
    now, best_step_s, delayed = at
    weighed: list[Candidate] = []
    for worker in workers:
        (
            worker_id, epoch, seq, state, confidence, trust, network_s, backlog_tokens, running,
            waiting, base_s, slope_s, _, step_s, output_tokens, pair_s, planned_s, _, _, _,
            capacity, _, why_not,
        ) = worker  # fmt: skip
        matched, coming, eta, _ = matches.get(worker_id, NO_MATCH)
        if not p.trust:
            trust = 1.0
        trusted = matched * trust * confidence
        uncached = max(prompt - trusted - coming * trust, 1.0)
        ahead_s = p.backlog * (slope_s * backlog_tokens + (base_s if waiting else 0.0)) + planned_s
        pending_s = max(eta - now - ahead_s, 0.0) * p.pending if coming else 0.0
        pairs = uncached * (prompt - uncached / 2)
        prefill_s = base_s + slope_s * uncached + pair_s * pairs
        externality_s = p.externality * prefill_s * (delayed + p.shared * running)
        tpot_s = kv_s = 0.0
        if step_s > best_step_s:
            tpot_s = p.tpot * min(most, output_tokens) * (step_s - best_step_s)
        if capacity:
            kv_s = p.kv_pressure * _kv_pressure(worker, uncached + min(most, output_tokens), p)
        load_s = p.adapter_load * loads.get(worker_id, 0.0) if loads else 0.0
        ttft_s = network_s + ahead_s + prefill_s + pending_s + load_s
        lateness_s = p.lateness * ttft_s * ttft_s
        replication_s = -p.replication * externality_s if worker_id in replicas else 0.0
        total_s = ttft_s + (lateness_s + externality_s + replication_s + tpot_s + kv_s)
        terms = (
            worker_id, epoch, seq, state, matched, trusted, uncached, network_s, ahead_s,
            prefill_s, pending_s, externality_s, tpot_s, kv_s, total_s, why_not, lateness_s,
            replication_s, load_s,
        )  # fmt: skip
        weighed.append(tuple.__new__(Candidate, terms))
    return weighed


def worth_waiting(worker: WorkerView, match: Match, at: Scene, p: CostParams) -> Match:
    """The match without its pending blocks, if computing them again costs less than the wait."""
    if not match.pending_tokens:
        return match
    wait_s = match.eta - at.now - backlog_s(worker, p)
    work_s = worker.slope_s * match.pending_tokens
    if p.pending and wait_s <= work_s * (1 + p.externality * _others(worker, at.delayed, p)):
        return match
    return Match(match.matched_tokens)


def backlog_s(worker: WorkerView, p: CostParams) -> float:
    """Prefill work ahead of a new request there, planned work included."""
    # Those that wait share their steps, so what a step costs by itself counts once.
    base_s = worker.base_s if worker.waiting else 0.0
    return p.backlog * (worker.slope_s * worker.backlog_tokens + base_s) + worker.planned_s


def _others(worker: WorkerView, delayed: float, p: CostParams) -> float:
    """Requests, present or to come, that a second of prefill delays by a second."""
    return delayed + p.shared * worker.running


def _kv_pressure(worker: WorkerView, new_tokens: float, p: CostParams) -> float:
    needed = new_tokens / worker.block_tokens
    share = (worker.used_blocks + needed) / worker.capacity_blocks
    if share <= p.kv_knee:
        return 0.0
    return p.kv_scale_s * (share - p.kv_knee) / max(1 - share, 0.02)
