"""What a request that cannot go now would have to compute, without a decision.

A decision settles three things: whether the request goes, where its work is planned, and how long
its prefill would be where that is least. For a request that no worker can take, with nobody behind
it who may go, only the last matters: it gives the request its place in the line. It depends on what
workers hold of the prompt and on how fast they are, not on what they have to do, so it is kept for
each worker and made anew where one of these changed.

What is told is what ``decide`` would say, to the last bit; where that depends on more, nothing is.
Pure.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from penstock_router.policy.cost import CostParams, Scene, scene, weigh, worth_waiting
from penstock_router.policy.decide import PRICE_ALL
from penstock_router.policy.facts import Match, RoutingRequest
from penstock_router.policy.panel import Panel

_MOST_POOLS = 16
# A prefill does not depend on it.
_NO_SCENE = Scene(0.0, 0.0, 0.0)


class Asked(NamedTuple):
    """Whose forecast is asked for, and when."""

    ticket_id: str
    request: RoutingRequest
    now: float


class Least(NamedTuple):
    """The least prefill of a request, and how much of it is trusted to be cached there.

    ``seconds``: what a prefill takes at least on each worker that can be chosen.
    """

    work_s: float
    trusted_tokens: float
    seconds: Sequence[float]


@dataclass(slots=True)
class _Speeds:
    """How fast the workers of a pool are; ``changes`` counts those that were taken in."""

    workers: Sequence[tuple[object, ...]] = ()
    log: list[int] = field(default_factory=list)

    def take(self, panel: Panel) -> bool:
        """Note whose speed is another now; false if the workers themselves are others."""
        now = [
            (w.worker_id, w.base_s, w.slope_s, w.pair_s, w.trust, w.confidence) for w in panel.open
        ]
        before, self.workers = self.workers, now
        if [w[0] for w in before] != [w[0] for w in now] or len(self.log) > 64 * len(now):
            return False
        if before != now:
            self.log += [
                n for n, (old, new) in enumerate(zip(before, now, strict=True)) if old != new
            ]
        return True


@dataclass(slots=True)
class _Kept:
    """A request's prefill on each worker of a pool, as far as the speeds' log had come."""

    speeds: _Speeds
    matches: Mapping[str, Match]
    # The same without what is coming, and for whom something is.
    alone: Mapping[str, Match]
    coming: list[int]
    # Without what is coming, how much of it is cached, and with what is coming.
    seconds: list[float]
    trusted: list[float]
    lowest: list[float]
    at: int = 0

    @classmethod
    def of(cls, matches: Mapping[str, Match], speeds: _Speeds, panel: Panel) -> Self:
        pending = {k: Match(m.matched_tokens) for k, m in matches.items() if m.pending_tokens}
        coming = [n for n, w in enumerate(panel.open) if w.worker_id in pending]
        nothing = [0.0] * len(panel.open)
        alone = {**matches, **pending} if pending else matches
        return cls(speeds, matches, alone, coming, nothing, nothing.copy(), nothing.copy())


class Forecast:
    """Least prefills of waiting requests."""

    def __init__(self, cost: CostParams) -> None:
        self._cost = cost
        self._pools: dict[Hashable, _Speeds] = {}
        self._kept: dict[str, _Kept] = {}

    def forget(self, ticket_id: str) -> None:
        """It waits no longer."""
        self._kept.pop(ticket_id, None)

    def look(self, pool: Hashable, panel: Panel) -> None:
        """Note how fast a pool's workers are now."""
        speeds = self._pools.get(pool)
        if speeds is None or not speeds.take(panel):
            if len(self._pools) >= _MOST_POOLS:
                self._pools.clear()
            speeds = self._pools[pool] = _Speeds()
            speeds.take(panel)

    def least(self, of: Asked, pool: Hashable, panel: Panel) -> Least | None:
        """A request's least prefill in a pool that was looked at; None if only a decision can tell.

        What is planned there may be less than a decision would find, but not more.
        """
        request = of.request
        if request.excluded or not 0 < len(panel.open) <= PRICE_ALL:
            return None
        kept = self._update(of, self._pools[pool], panel)
        work_s = least_s = min(kept.seconds)
        if kept.coming:
            sooner = [n for n in kept.coming if kept.lowest[n] <= least_s]
            sure = self._worth_waiting(sooner, of, panel)
            work_s = min([kept.lowest[n] for n in sure], default=work_s)
            if any(kept.lowest[n] <= work_s for n in sooner if n not in sure):
                return None
        places = _places(kept.seconds, work_s) + [
            n for n in kept.coming if kept.lowest[n] == work_s
        ]
        trusted = kept.trusted[places[0]]
        if any(kept.trusted[n] != trusted for n in places):
            return None
        return Least(work_s, trusted, kept.lowest)

    def _worth_waiting(self, places: Sequence[int], of: Asked, panel: Panel) -> set[int]:
        """For whom of these the blocks that are coming count, whatever else will be planned.

        With more planned, waiting for them is worth it sooner, never later.
        """
        at, matches, cost = scene(panel.totals, of.now, self._cost), of.request.matches, self._cost
        pairs = [(n, worker := panel.open[n], matches[worker.worker_id]) for n in places]
        return {n for n, worker, match in pairs if worth_waiting(worker, match, at, cost) is match}

    def _update(self, of: Asked, speeds: _Speeds, panel: Panel) -> _Kept:
        """Bring a request's prefills without what is coming up to date."""
        request, kept = of.request, self._kept.get(of.ticket_id)
        if kept is None or kept.speeds is not speeds or kept.matches is not request.matches:
            kept = self._kept[of.ticket_id] = _Kept.of(request.matches, speeds, panel)
            changed = list(range(len(panel.open)))
        else:
            changed = list(set(speeds.log[kept.at :]))
        kept.at = len(speeds.log)
        if changed:
            self._price(kept, changed, request, panel)
        return kept

    def _price(
        self, kept: _Kept, changed: Sequence[int], request: RoutingRequest, panel: Panel
    ) -> None:
        workers, cost = [panel.open[n] for n in changed], self._cost
        alone = weigh(workers, kept.alone, request, _NO_SCENE, cost)
        lowest = weigh(workers, kept.matches, request, _NO_SCENE, cost) if kept.coming else alone
        for n, candidate, least in zip(changed, alone, lowest, strict=True):
            kept.seconds[n] = candidate.prefill_s
            kept.trusted[n] = candidate.trusted_tokens
            kept.lowest[n] = least.prefill_s


def _places(values: list[float], value: float) -> list[int]:
    """Where a value stands in a list."""
    places, at = [], -1
    for _ in range(values.count(value)):
        at = values.index(value, at + 1)
        places.append(at)
    return places
