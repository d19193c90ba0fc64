"""The router's queue: who may wait, in which order, and who goes where when a worker is open.

Late binding: a request that cannot be served within its class's objective keeps waiting here, where
it can still be overtaken by a shorter one and still go to any worker; engines serve first in, first
out. A round of placements walks the queue in its order and asks ``decide`` for each request, with
the prefill work of those before it that wait for the same worker added to that worker's backlog. A
request goes if its worker is open; if not, it is planned there. The round ends where nobody further
on can go, whatever would be decided for him (``rest``).

Pure: the caller brings the clock, looks prompts up, and does what a placement says before it asks
for the next one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from penstock_core.errors import Overloaded, PenstockError
from penstock_router.admission.forecast import Least
from penstock_router.admission.held import Held
from penstock_router.admission.lines import Lines
from penstock_router.admission.order import Shares, in_order
from penstock_router.admission.rest import Rest
from penstock_router.admission.rules import may_go
from penstock_router.admission.ticket import ONLINE, AdmissionParams, PriorityClass, Ticket
from penstock_router.admission.walk import Lookup, Walk
from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import decide
from penstock_router.policy.facts import Decision, RoutingRequest, WorkerView
from penstock_router.policy.panel import Panel

_LEAST_RETRY_S = 0.1
_LEAST_WAIT_S = 0.002


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
        self._rest = Rest(params, cost)
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
            self._rest.forecast.forget(request_id)
            if not self._tickets:
                self._shares.forget(())

    def placements(self, lookup: Lookup, now: float) -> Iterator[Placement]:
        """Who goes now. Carry each one out before asking for the next."""
        self._wake_at = float("inf")
        while self._tickets and (placement := self._next(lookup, now)) is not None:
            self.remove(placement.ticket.ticket_id)
            yield placement

    def wake_at(self) -> float:
        """When a worker is foreseen to open, so that another round makes sense."""
        return self._wake_at if self._tickets else float("inf")

    def _next(self, lookup: Lookup, now: float) -> Placement | None:
        """Walk along the queue to the first ticket that leaves it."""
        self._lines.settle()
        walk = Walk(lookup, now, self._cost, lambda panel: self._is_open(panel, now))
        tickets = self._in_order(now)
        ending = self._rest.of(tickets, walk)
        for number, ticket in enumerate(tickets):
            if ending.comes(number):
                self._stay(ending.staying(), lookup)
                break
            placement = self._consider(ticket, walk)
            if placement is not None:
                return placement
        return None

    def _in_order(self, now: float) -> list[Ticket]:
        if len(self._tickets) == 1:  # mostly, since most find a worker open when they come
            return list(self._tickets.values())
        ordered = in_order(self._lines, self._shares, self.params, now)
        return list(islice(ordered, self.params.plan_limit))

    def _is_open(self, panel: Panel, now: float) -> bool:
        """Whether anybody could take anything; notes when somebody will."""
        least = panel.least_backlog_s
        if least <= max(self.params.ahead_s, self._longest_slo_s):
            return True
        self._wake_at = min(self._wake_at, now + max(least - self.params.ahead_s, _LEAST_WAIT_S))
        return False

    def _consider(self, ticket: Ticket, walk: Walk) -> Placement | None:
        now = walk.now
        if ticket.deadline_s <= now:
            return Placement(ticket, now, error=_too_late(now - ticket.deadline_s))
        panel = walk.panel(ticket)
        return None if panel is None else self._decide(ticket, panel, walk)

    def _decide(self, ticket: Ticket, panel: Panel, walk: Walk) -> Placement | None:
        now, request = walk.now, walk.lookup.request(ticket, walk.now)
        decision = decide(panel, request, now, walk.lookup.seed(ticket), self._cost)
        chosen = decision.chosen
        if chosen is None:
            return Placement(ticket, now, decision, tuple(panel), request)
        self._learn(ticket, decision)
        held = decision.waits_for and now - ticket.arrived_s < self.params.longest_hold_s
        view = panel.view(chosen.worker_id)
        goes = not held and may_go(ticket, view, chosen, self.params)
        # Who finds a worker open on arrival goes, whatever is foretold: the deadline will tell.
        if now + chosen.ttft_s > ticket.deadline_s and not (goes and now <= ticket.arrived_s):
            error = _too_late(chosen.backlog_s)
            return Placement(ticket, now, decision, tuple(panel), request, error)
        if goes:
            self._shares.charge(ticket, chosen.prefill_s)
            return Placement(ticket, now, decision, tuple(panel), request)
        walk.plan(chosen)
        return None

    def _stay(self, staying: Sequence[tuple[Ticket, Least]], lookup: Lookup) -> None:
        """Take in what decisions would have taught."""
        for ticket, least in staying:
            # Drawn as if it were decided, so that what is spared changes no other decision.
            lookup.seed(ticket)
            self._predict(ticket, least.work_s, least.trusted_tokens)

    def _learn(self, ticket: Ticket, decision: Decision) -> None:
        chosen, quickest = decision.chosen, decision.quickest
        assert chosen is not None
        assert quickest is not None
        ticket.expected_ttft_s = chosen.ttft_s
        self._predict(ticket, quickest.prefill_s, quickest.trusted_tokens)

    def _predict(self, ticket: Ticket, work_s: float, trusted_tokens: float) -> None:
        ticket.work_s = work_s
        ticket.hit_share = trusted_tokens / max(ticket.prompt_tokens, 1)
        self._lines.changed(ticket)

    def _retry_s(self) -> float:
        """When half of what waits now will have gone, as far as is known."""
        waits = sorted(t.expected_ttft_s for t in self._tickets.values())
        return max(waits[len(waits) // 2] if waits else 0.0, _LEAST_RETRY_S)


def _too_late(busy_s: float) -> Overloaded:
    return Overloaded(
        "its first token would come after its deadline",
        retry_after_s=max(busy_s, _LEAST_RETRY_S),
    )
