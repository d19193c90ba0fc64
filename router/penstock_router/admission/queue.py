"""The router's queue: who may wait, in which order, and who goes where when a worker is open.

Late binding: a request that cannot be served within its class's objective keeps waiting here, where
it can still be overtaken by a shorter one and still go to any worker; engines serve first in, first
out. A round of placements walks the queue in its order and asks ``decide`` for each request, with
the prefill work of those before it that wait for the same worker added to that worker's backlog. A
request goes if its worker is open; if not, it is planned there.

Pure: the caller brings the clock, looks prompts up, and does what a placement says before it asks
for the next one.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from penstock_core.errors import Overloaded, PenstockError
from penstock_router.admission.held import Held
from penstock_router.admission.lines import Lines
from penstock_router.admission.order import Shares, in_order
from penstock_router.admission.ticket import ONLINE, AdmissionParams, PriorityClass, Ticket
from penstock_router.policy.cost import CostParams, backlog_s
from penstock_router.policy.decide import decide
from penstock_router.policy.facts import Candidate, Decision, RoutingRequest, WorkerView
from penstock_router.policy.panel import Panel

_LEAST_RETRY_S = 0.1
_LEAST_WAIT_S = 0.002


class Lookup(Protocol):
    """What a round of placements asks about the present."""

    def pool(self, ticket: Ticket) -> Hashable:
        """Names the workers that may serve it: equal pools, equal views."""

    def views(self, ticket: Ticket, now: float) -> Sequence[WorkerView]:
        """The workers for a ticket, as they are now."""

    def request(self, ticket: Ticket, now: float) -> RoutingRequest:
        """What each worker holds of it now."""

    def seed(self, ticket: Ticket) -> int:
        """The seed of its decision."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A ticket leaves the queue: with a decision, or with the error that it ends with."""

    ticket: Ticket
    now: float
    decision: Decision | None = None
    views: tuple[WorkerView, ...] = ()
    request: RoutingRequest | None = None
    error: PenstockError | None = None


class AdmissionQueue:
    """Requests that wait for a worker."""

    def __init__(self, params: AdmissionParams, cost: CostParams) -> None:
        self.params = params
        self._cost = cost
        self._tickets: dict[str, Ticket] = {}
        self._lines = Lines(params)
        self._held = Held(params.bounds)
        self._shares = Shares(params)
        self._wake_at = float("inf")
        self._longest_slo_s = max(params.slo_s[k] for k in ONLINE[1:])

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._tickets)

    @property
    def tokens(self) -> int:
        """Their prompt tokens."""
        return self._held.tokens

    @property
    def size_bytes(self) -> int:
        """What they occupy."""
        return self._held.size_bytes

    def waiting(self, kind: PriorityClass) -> int:
        """Requests of a class that wait."""
        return self._held.waiting(kind)

    def offer(self, ticket: Ticket) -> None:
        """Let a request wait.

        Raises:
            Overloaded: there is no room; tells when to try again.
            QuotaExceeded: the tenant has too much waiting.
        """
        self._held.check(ticket, self._retry_s)
        self._shares.joins(ticket, self._held.one_of_each())
        self._tickets[ticket.ticket_id] = ticket
        self._held.add(ticket)
        self._lines.add(ticket)

    def remove(self, request_id: str) -> None:
        """A request waits no longer, for whatever reason."""
        ticket = self._tickets.pop(request_id, None)
        if ticket is not None:
            self._held.remove(ticket)
            self._lines.remove(ticket)
            if not self._tickets:
                self._shares.forget(())

    def placements(self, lookup: Lookup, now: float) -> Iterator[Placement]:
        """Who goes now. Carry each one out before asking for the next."""
        self._wake_at = float("inf")
        while (placement := self._next(lookup, now)) is not None:
            self.remove(placement.ticket.ticket_id)
            yield placement

    def wake_at(self) -> float:
        """When a worker is foreseen to open, so that another round makes sense."""
        return self._wake_at if self._tickets else float("inf")

    def _next(self, lookup: Lookup, now: float) -> Placement | None:
        """Walk along the queue to the first ticket that leaves it."""
        self._lines.settle()
        walk = _Walk(lookup, now, self._cost)
        ordered = in_order(self._lines, self._shares, self.params, now)
        for ticket in islice(ordered, self.params.plan_limit):
            if ticket.deadline_s <= now:
                return Placement(ticket, now, error=_too_late(now - ticket.deadline_s))
            panel = walk.panel(ticket, self._any_open)
            if panel is not None:
                placement = self._consider(ticket, panel, walk)
                if placement is not None:
                    return placement
        return None

    def _any_open(self, panel: Panel, now: float) -> bool:
        """Whether anybody could take anything; notes when somebody will."""
        least = min([backlog_s(v, self._cost) for v in panel.open], default=0.0)
        if least <= max(self.params.ahead_s, self._longest_slo_s):
            return True
        self._wake_at = min(self._wake_at, now + max(least - self.params.ahead_s, _LEAST_WAIT_S))
        return False

    def _consider(self, ticket: Ticket, panel: Panel, walk: "_Walk") -> Placement | None:
        now, request = walk.now, walk.lookup.request(ticket, walk.now)
        decision = decide(panel, request, now, walk.lookup.seed(ticket), self._cost)
        chosen = decision.chosen
        if chosen is None:
            return Placement(ticket, now, decision, tuple(panel), request)
        self._learn(ticket, decision)
        held = decision.waits_for and now - ticket.arrived_s < self.params.longest_hold_s
        may_go = not held and self._may_go(ticket, panel.view(chosen.worker_id), chosen)
        # Who finds a worker open on arrival goes, whatever is foretold: the deadline will tell.
        if now + chosen.ttft_s > ticket.deadline_s and not (may_go and now <= ticket.arrived_s):
            error = _too_late(chosen.backlog_s)
            return Placement(ticket, now, decision, tuple(panel), request, error)
        if may_go:
            self._shares.charge(ticket, chosen.prefill_s)
            return Placement(ticket, now, decision, tuple(panel), request)
        walk.plan(chosen)
        return None

    def _may_go(self, ticket: Ticket, view: WorkerView, chosen: Candidate) -> bool:
        """Whether the chosen worker takes it now."""
        if view.max_batch and view.running + view.waiting >= view.max_batch:
            return False
        full = view.capacity_blocks * self.params.full_share
        if view.capacity_blocks and view.running and view.used_blocks >= full:
            return False
        if ticket.priority is PriorityClass.BATCH:
            return self._has_slack(view) and chosen.backlog_s <= self.params.ahead_s
        objective_s = self.params.slo_s[ticket.priority]
        return chosen.backlog_s <= self.params.ahead_s or chosen.ttft_s <= objective_s

    def _has_slack(self, view: WorkerView) -> bool:
        """Whether what is left over of a worker is more than the others' reserve."""
        return not (
            view.planned
            or (view.max_batch and view.running >= self.params.batch_share * view.max_batch)
            or (
                view.used_blocks
                and view.used_blocks >= self.params.batch_share * view.capacity_blocks
            )
        )

    def _learn(self, ticket: Ticket, decision: Decision) -> None:
        chosen, quickest = decision.chosen, decision.quickest
        assert chosen is not None
        assert quickest is not None
        ticket.work_s = quickest.prefill_s
        ticket.hit_share = quickest.trusted_tokens / max(ticket.prompt_tokens, 1)
        ticket.expected_ttft_s = chosen.ttft_s
        self._lines.changed(ticket)

    def _retry_s(self) -> float:
        """When half of what waits now will have gone, as far as is known."""
        waits = sorted(t.expected_ttft_s for t in self._tickets.values())
        return max(waits[len(waits) // 2] if waits else 0.0, _LEAST_RETRY_S)


class _Walk:
    """One walk along the queue: the workers as they are, and what waits for them already."""

    def __init__(self, lookup: Lookup, now: float, cost: CostParams) -> None:
        self.lookup = lookup
        self.now = now
        self._cost = cost
        self._panels: dict[Hashable, Panel | None] = {}
        self._plans: dict[str, tuple[float, int]] = {}

    def panel(self, ticket: Ticket, is_open: Callable[[Panel, float], bool]) -> Panel | None:
        """A ticket's workers; None if none of them is open."""
        pool = self.lookup.pool(ticket)
        if pool not in self._panels:
            panel = Panel(self.lookup.views(ticket, self.now), self._cost)
            self._panels[pool] = panel if is_open(panel, self.now) else None
            for worker_id, (seconds, requests) in self._plans.items():
                panel.plan(worker_id, seconds, requests)
        return self._panels[pool]

    def plan(self, chosen: Candidate) -> None:
        """A ticket waits for its worker, before those that follow."""
        seconds, requests = self._plans.get(chosen.worker_id, (0.0, 0))
        plan = self._plans[chosen.worker_id] = (seconds + chosen.prefill_s, requests + 1)
        for panel in self._panels.values():
            if panel is not None:
                panel.plan(chosen.worker_id, *plan)


def _too_late(busy_s: float) -> Overloaded:
    return Overloaded(
        "its first token would come after its deadline",
        retry_after_s=max(busy_s, _LEAST_RETRY_S),
    )
