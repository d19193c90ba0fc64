"""The end of a walk along the queue: requests that stay, whatever a decision would say of them.

A worker takes a request if it has next to nothing to do, or if the first token would come within
the class's objective. Plans only add to what workers have to do. So where no worker of those now
open is idle enough for a request or for one behind it, the walk may end there. What a decision
would have taught about them is foretold, since their order hangs on it.
"""

from collections.abc import Sequence

from penstock_router.admission.bounds import Latest
from penstock_router.admission.forecast import Asked, Forecast, Least
from penstock_router.admission.rules import has_room
from penstock_router.admission.ticket import AdmissionParams, PriorityClass, Ticket
from penstock_router.admission.walk import Walk
from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import PRICE_ALL
from penstock_router.policy.facts import RoutingRequest
from penstock_router.policy.panel import Panel

# Sums are rounded in another order here than where it is decided.
_SLACK_S = 1e-9


Takers = list[tuple[float, int]]
"""Backlogs of workers, least first, each with its place among the open ones of its panel."""


class Rest:
    """Tells where walks may end."""

    def __init__(self, params: AdmissionParams, cost: CostParams) -> None:
        self.forecast = Forecast(cost)
        self._params = params

    def of(self, tickets: Sequence[Ticket], walk: Walk) -> "Ending":
        """The ending of a walk along these tickets."""
        return Ending(self, tickets, walk)

    def takers(self, panel: Panel, kind: PriorityClass) -> Takers | None:
        """Workers that may take one of a class; None if one of them is idle: it would take any."""
        limit_s = max(self._params.ahead_s, self._params.slo_s[kind])
        takers: Takers = []
        for backlog_s, place in panel.no_busier(limit_s):
            if has_room(panel.open[place], self._params):
                if backlog_s <= self._params.ahead_s:
                    return None
                takers.append((backlog_s, place))
        return takers

    def may_go(self, kind: PriorityClass, panel: Panel, takers: Takers, least: Least) -> bool:
        """Whether one of them, none being idle, may take a request."""
        if kind is PriorityClass.BATCH:
            return False
        objective_s = self._params.slo_s[kind] + _SLACK_S
        return any(
            panel.open[place].network_s + backlog_s + least.seconds[place] <= objective_s
            for backlog_s, place in takers
        )


class Ending:
    """The tickets at the end of a walk that stay for certain; more of them the more is planned."""

    def __init__(self, rules: Rest, tickets: Sequence[Ticket], walk: Walk) -> None:
        self._rules = rules
        self._tickets = tickets
        self._walk = walk
        self._begin = len(tickets)
        self._staying: list[tuple[Ticket, Least]] = []
        self._tried: Takers | None = None
        self._looked: set[int] = set()
        self._latest: dict[int, Latest] = {}
        self._timed = any(ticket.deadline_s < float("inf") for ticket in tickets)

    def comes(self, number: int) -> bool:
        """Whether it begins at this place of the walk or before."""
        if number >= self._begin:
            return True
        ticket = self._tickets[number]
        panel = self._walk.panel(ticket)
        if panel is not None:
            takers = self._takers(panel, ticket)
            # While one is idle anybody may go, and with the same ones as before nobody else stays.
            if takers is None or takers == self._tried:
                return False
            self._tried = takers
        while self._begin > number and self._stays(self._tickets[self._begin - 1]):
            self._begin -= 1
        return self._begin == number

    def staying(self) -> list[tuple[Ticket, Least]]:
        """What is foretold of them, in their order; of those whose workers are all closed nothing."""
        return self._staying[::-1]

    def _stays(self, ticket: Ticket) -> bool:
        if ticket.deadline_s <= self._walk.now:
            return False
        panel = self._walk.panel(ticket)
        if panel is None:
            return True
        least = self._least(ticket, panel)
        if least is None:
            return False
        self._staying.append((ticket, least))
        return True

    def _least(self, ticket: Ticket, panel: Panel) -> Least | None:
        rules, walk, takers = self._rules, self._walk, self._takers(panel, ticket)
        if takers is None:
            return None
        pool, request = walk.pool(ticket), walk.lookup.request(ticket, walk.now)
        if id(panel) not in self._looked:
            self._looked.add(id(panel))
            rules.forecast.look(pool, panel)
        least = rules.forecast.least(Asked(ticket.ticket_id, request, walk.now), pool, panel)
        if least is None or rules.may_go(ticket.priority, panel, takers, least):
            return None
        return least if not self._timed or self._in_time(ticket, panel, request) else None

    def _takers(self, panel: Panel, ticket: Ticket) -> Takers | None:
        # Of a large fleet only some are priced, so nothing can be foretold.
        if not 0 < len(panel.open) <= PRICE_ALL:
            return None
        return self._rules.takers(panel, ticket.priority)

    def _in_time(self, ticket: Ticket, panel: Panel, request: RoutingRequest) -> bool:
        """Whether its first token comes before its deadline wherever it goes."""
        latest = self._latest.get(id(panel))
        if latest is None:
            latest = Latest(panel, self._tickets, self._walk.cost)
            self._latest[id(panel)] = latest
        return self._walk.now + latest.ttft_s(request) <= ticket.deadline_s
