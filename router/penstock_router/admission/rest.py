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


class Rest:
    """Tells who stays."""

    def __init__(self, params: AdmissionParams, cost: CostParams) -> None:
        self.forecast = Forecast(cost)
        self._params = params
        self._cost = cost

    def staying(self, rest: Sequence[Ticket], walk: Walk) -> list[tuple[Ticket, Least]] | int:
        """The rest of a walk if all of it stays; else how many come before the first that may not.

        Those whose workers are all closed stay, and are left out.
        """
        look = _Look(self, walk, rest)
        found: list[tuple[Ticket, Least]] = []
        for number, ticket in enumerate(rest):
            if ticket.deadline_s <= walk.now:
                return number
            panel = walk.panel(ticket)
            if panel is None:
                continue
            least = look.least(ticket, panel)
            if least is None:
                return number
            found.append((ticket, least))
        return found

    def takers(self, panel: Panel, kind: PriorityClass) -> list[tuple[float, int]]:
        """Workers that may take one of a class: backlogs, least first, and places among the open."""
        limit = max(self._params.ahead_s, self._params.slo_s[kind])
        return [
            (backlog_s, place)
            for backlog_s, place in panel.no_busier(limit)
            if has_room(panel.open[place], self._params)
        ]

    def may_go(
        self, kind: PriorityClass, panel: Panel, takers: Sequence[tuple[float, int]], least: Least
    ) -> bool:
        """Whether one of them may take a request, none of them being idle."""
        if kind is PriorityClass.BATCH:
            return False
        objective_s = self._params.slo_s[kind] + _SLACK_S
        return any(
            panel.open[place].network_s + backlog_s + least.seconds[place] <= objective_s
            for backlog_s, place in takers
        )

    def is_idle(self, takers: Sequence[tuple[float, int]]) -> bool:
        """Whether one of them would take anything."""
        return bool(takers) and takers[0][0] <= self._params.ahead_s


class _Look:
    """What is found out once for all of a rest."""

    def __init__(self, rules: Rest, walk: Walk, rest: Sequence[Ticket]) -> None:
        self._rules = rules
        self._walk = walk
        self._rest = rest
        self._timed: bool | None = None
        self._takers: dict[tuple[int, PriorityClass], list[tuple[float, int]]] = {}
        self._looked: set[int] = set()
        self._latest: dict[int, Latest] = {}
        self._count, self._before_s = 0, 0.0

    def least(self, ticket: Ticket, panel: Panel) -> Least | None:
        """The least prefill of a ticket that stays; None if it may not stay."""
        rules, walk, kind = self._rules, self._walk, ticket.priority
        if not 0 < len(panel.open) <= PRICE_ALL:
            return None
        takers = self._takers.get((id(panel), kind))
        if takers is None:
            takers = self._takers[id(panel), kind] = rules.takers(panel, kind)
        if rules.is_idle(takers):
            return None
        pool, request = walk.pool(ticket), walk.lookup.request(ticket, walk.now)
        if id(panel) not in self._looked:
            self._looked.add(id(panel))
            rules.forecast.look(pool, panel)
        asked = Asked(ticket.ticket_id, request, walk.now)
        least = rules.forecast.least(asked, pool, panel)
        if least is None or rules.may_go(kind, panel, takers, least):
            return None
        if self._timed is None:
            self._timed = any(t.deadline_s < float("inf") for t in self._rest)
        return least if not self._timed or self._in_time(ticket, panel, request) else None

    def _in_time(self, ticket: Ticket, panel: Panel, request: RoutingRequest) -> bool:
        """Whether its first token comes before its deadline wherever it goes."""
        latest = self._latest.get(id(panel))
        if latest is None:
            latest = self._latest[id(panel)] = Latest(panel, self._walk.now, self._walk.cost)
        bound = latest.of(request, self._count, self._before_s)
        self._count += 1
        self._before_s += bound.prefill_s
        return self._walk.now + bound.ttft_s <= ticket.deadline_s
