"""The decision: a pure function of what is known, the request, the clock and a seed.

Ties (``CostParams.tie_s``, or a share of the best one's time to first token) go to the larger hit,
then to a rendezvous hash of the first block nobody holds. Routers that know the same therefore
choose the same, and the second request with a new prefix goes where the first one went, whichever
router took it.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import xxhash

from penstock_router.policy.cost import (
    CostParams,
    Scene,
    scene,
    weigh,
    worth_waiting,
)
from penstock_router.policy.facts import (
    NO_MATCH,
    Candidate,
    Decision,
    Explanation,
    Match,
    Ranking,
    RoutingRequest,
    WorkerView,
)
from penstock_router.policy.panel import Panel

# Above so many workers only those are priced that hold most or have least to do.
PRICE_ALL = 256
_SHORTLIST = 32
_EXCLUDED_BY_CALLER = "it just failed this request"


def decide(
    workers: Sequence[WorkerView],
    request: RoutingRequest,
    now: float,
    seed: int,
    params: CostParams,
) -> Decision:
    """Choose a worker.

    Args:
        workers: everybody who serves the model; excluded ones are never chosen. A panel of them
            saves what it has worked out already.
        request: what is asked for, with what each worker holds of it.
        now: the clock that ``Match.eta`` refers to, in seconds.
        seed: breaks ties where no cache is at stake.
        params: the policy's parameters.
    """
    field = _weigh(workers, request, now, params)
    return _choose(field, request, seed, params) if field else Decision(None)


def explain(
    workers: Sequence[WorkerView],
    request: RoutingRequest,
    now: float,
    seed: int,
    params: CostParams,
) -> Explanation:
    """What ``decide`` does with the same arguments, and why."""
    field = _weigh(workers, request, now, params)
    refused = [_refused(w, request) for w in workers if _why_not(w, request)]
    if field is None:
        return Explanation(Decision(None), tuple(refused), "no worker can take it")
    decision = _choose(field, request, seed, params)
    ranking = _ranked(field, decision, refused, request, params)
    chosen, unaware = ranking.candidates[0], _without_affinity(field, request, seed, params)
    return Explanation(
        decision=decision,
        candidates=ranking.candidates,
        reason=ranking.reason,
        margin_s=ranking.margin_s,
        counterfactual_worker_id=unaware.worker_id,
        counterfactual_loss_s=max(unaware.total_s - chosen.total_s, 0.0),
    )


def rank(
    workers: Sequence[WorkerView],
    request: RoutingRequest,
    now: float,
    decision: Decision,
    params: CostParams,
) -> Ranking:
    """What of ``explain`` a trace tells about a decision: without the counterfactual, half the work."""
    refused = [_refused(w, request) for w in workers if _why_not(w, request)]
    field = _weigh(workers, request, now, params)
    if field is None:
        return Ranking(tuple(refused), "no worker can take it")
    return _ranked(field, decision, refused, request, params)


class _Field(NamedTuple):
    """Who competes, with what is counted on there, under which circumstances, at which price."""

    workers: list[WorkerView]
    matches: Mapping[str, Match]
    at: Scene
    priced: list[Candidate]


def _weigh(
    workers: Sequence[WorkerView], request: RoutingRequest, now: float, params: CostParams
) -> _Field | None:
    """The price of everybody who can take it; None if nobody can."""
    matches = request.matches
    if isinstance(workers, Panel) and workers.params is params and not request.excluded:
        panel = workers
    else:
        panel = Panel(workers, params, request.excluded)
    if not panel.open:
        return None
    at = scene(panel.totals, now, params)
    open_to = _shortlist(panel, matches)
    coming = {
        w.worker_id: worth_waiting(w, match, at, params)
        for w in open_to
        if (match := matches.get(w.worker_id)) is not None and match.pending_tokens
    }
    if coming:
        matches = {**matches, **coming}
    return _Field(open_to, matches, at, weigh(open_to, matches, request, at, params))


def _ranked(
    field: _Field,
    decision: Decision,
    refused: Sequence[Candidate],
    request: RoutingRequest,
    params: CostParams,
) -> Ranking:
    chosen = decision.chosen
    assert chosen is not None
    priced = sorted(field.priced, key=_by_price)
    rest = [c for c in priced if c.worker_id != chosen.worker_id]
    match = field.matches.get(chosen.worker_id, NO_MATCH)
    return Ranking(
        candidates=(chosen, *rest, *refused),
        reason=_reason(chosen, rest, _tied(priced, params), (match, request.prompt_tokens)),
        margin_s=max(rest[0].total_s - chosen.total_s, 0.0) if rest else 0.0,
    )


def _choose(field: _Field, request: RoutingRequest, seed: int, params: CostParams) -> Decision:
    tied = _tied(field.priced, params)
    most = max(c.matched_tokens for c in tied)
    chosen = max(
        (c for c in tied if c.matched_tokens == most), key=lambda c: _rendezvous(c, request, seed)
    )
    least_s = min(c.prefill_s for c in field.priced)
    quickest = chosen
    if chosen.prefill_s > least_s:
        quickest = min((c for c in field.priced if c.prefill_s == least_s), key=_by_price)
    match = field.matches.get(chosen.worker_id, NO_MATCH)
    return Decision(chosen, quickest, match.pending_requests)


def _by_price(candidate: Candidate) -> tuple[float, str]:
    return candidate.total_s, candidate.worker_id


def _shortlist(panel: Panel, matches: Mapping[str, Match]) -> list[WorkerView]:
    """Everybody in a small fleet; in a large one those that can win, in the order given."""
    workers = panel.open
    if len(workers) <= PRICE_ALL:
        return workers
    places = panel.places
    holders = [
        (-match.matched_tokens - match.pending_tokens, places[worker_id])
        for worker_id, match in matches.items()
        if worker_id in places
    ]
    holders.sort()
    chosen = {place for _, place in holders[:_SHORTLIST]}
    if len(holders) < _SHORTLIST:
        held = chosen.copy()
        others = (place for place in range(len(workers)) if place not in held)
        chosen.update(islice(others, _SHORTLIST - len(holders)))
    chosen.update(panel.least_busy(_SHORTLIST))
    return [workers[place] for place in sorted(chosen)]


def _without_affinity(
    field: _Field, request: RoutingRequest, seed: int, params: CostParams
) -> Candidate:
    """The candidate, at its true price, that would win if nobody held anything."""
    blind = [c.total_s for c in weigh(field.workers, {}, request, field.at, params)]
    least = min(blind)
    equals = [c for total_s, c in zip(blind, field.priced, strict=True) if total_s == least]
    return max(equals, key=lambda c: _rendezvous(c, request, seed))


def _why_not(worker: WorkerView, request: RoutingRequest) -> str:
    if worker.worker_id in request.excluded:
        return _EXCLUDED_BY_CALLER
    return worker.excluded_because


def _refused(worker: WorkerView, request: RoutingRequest) -> Candidate:
    matched = request.matches.get(worker.worker_id, NO_MATCH).matched_tokens
    facts = (worker.worker_id, worker.epoch, worker.seq, worker.sync_state, matched)
    uncached = float(request.prompt_tokens - matched)
    nothing = (0.0,) * 8
    return Candidate(*facts, float(matched), uncached, *nothing, _why_not(worker, request))


def _tied(priced: Sequence[Candidate], params: CostParams) -> list[Candidate]:
    least = min([c.total_s for c in priced])
    ttft_s = max([c.ttft_s for c in priced if c.total_s == least])
    limit = least + max(params.tie_s, params.tie_share * least, params.tie_ttft_share * ttft_s)
    return [c for c in priced if c.total_s <= limit]


def _rendezvous(candidate: Candidate, request: RoutingRequest, seed: int) -> int:
    # Without a block to compute nothing will be cached, so equals may as well share the work.
    key = seed if request.divergent is None else request.divergent
    return xxhash.xxh3_64_intdigest(candidate.worker_id.encode(), key & (2**64 - 1))


def _reason(
    chosen: Candidate,
    rest: Sequence[Candidate],
    tied: Sequence[Candidate],
    prompt: tuple[Match, int],
) -> str:
    match, prompt_tokens = prompt
    holds = f"holds {chosen.matched_tokens} of {prompt_tokens} prompt tokens"
    if match.pending_tokens:
        holds += f" and is computing {match.pending_tokens} more"
    if not rest:
        return f"the only worker that can take it; it {holds}"
    if len(tied) > 1:
        if any(c.matched_tokens < chosen.matched_tokens for c in tied):
            return f"about as cheap as {len(tied) - 1} other(s), and {holds}, the most of them"
        return (
            f"about as cheap as {len(tied) - 1} other(s); it {holds}; chosen by the prefix's hash"
        )
    return f"{holds}; {_advantage(chosen, rest[0])}"


def _advantage(chosen: Candidate, runner: Candidate) -> str:
    """What decided it against the next best, in words."""
    names = {
        "backlog_s": "a shorter queue",
        "prefill_s": "less to compute",
        "pending_s": "no wait for blocks under way",
        "externality_s": "less delay for others",
        "lateness_s": "a first token that is not late",
        "replication_s": "a copy that is wanted there",
        "tpot_s": "faster decoding",
        "kv_pressure_s": "more free KV memory",
        "network_s": "a shorter way",
        "adapter_load_s": "its adapter in memory",
    }
    gains = {name: getattr(runner, name) - getattr(chosen, name) for name in names}
    best = max(gains, key=lambda name: gains[name])
    beats = runner.total_s - chosen.total_s
    return f"{beats * 1000:.1f} ms cheaper than {runner.worker_id}, most of it {names[best]}"
