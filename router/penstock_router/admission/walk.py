"""One walk along the queue: the workers as they are, and what is planned on them on the way."""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from penstock_router.admission.ticket import Ticket
from penstock_router.policy.cost import CostParams
from penstock_router.policy.facts import Candidate, RoutingRequest, WorkerView
from penstock_router.policy.panel import Panel


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


class Walk:
    """Workers are looked at once for all tickets of a pool."""

    def __init__(
        self, lookup: Lookup, now: float, cost: CostParams, is_open: Callable[[Panel], bool]
    ) -> None:
        self.lookup = lookup
        self.now = now
        self.cost = cost
        self._is_open = is_open
        self._panels: dict[Hashable, Panel | None] = {}
        self._plans: dict[str, tuple[float, int]] = {}

    def pool(self, ticket: Ticket) -> Hashable:
        """Names a ticket's workers."""
        return self.lookup.pool(ticket)

    def panel(self, ticket: Ticket) -> Panel | None:
        """A ticket's workers; None if none of them is open."""
        pool = self.lookup.pool(ticket)
        if pool not in self._panels:
            panel = Panel(self.lookup.views(ticket, self.now), self.cost)
            self._panels[pool] = panel if self._is_open(panel) else None
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
