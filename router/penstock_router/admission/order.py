"""In which order waiting requests are served: classes, then tenants, then the shortest prefill.

SYSTEM goes first. The other online classes share by weight, as virtual time tells, and one whose
oldest request has waited past its bound goes before them; BATCH comes last. Inside a class the
tenant that was served least goes first (virtual token counter, in seconds of uncached prefill), and
of one tenant the shortest predicted prefill, which waiting makes shorter.

Source: "Fairness in Serving Large Language Models" (VTC), OSDI '24, with uncached work as the unit.
Pure; time comes in from outside.
"""

import heapq
from collections.abc import Iterable, Iterator

from penstock_router.admission.ticket import ONLINE, AdmissionParams, PriorityClass, Ticket


class Shares:
    """What was served to whom, as virtual times: per class, and per class and tenant."""

    def __init__(self, params: AdmissionParams) -> None:
        self._params = params
        self._by_class: dict[PriorityClass, float] = {}
        self._by_tenant: dict[tuple[PriorityClass, str], float] = {}

    def joins(self, ticket: Ticket, others: Iterable[Ticket]) -> None:
        """A ticket is to wait beside ``others``: who was away has saved nothing up."""
        kind, tenant = ticket.priority, ticket.tenant
        same = [t for t in others if t.priority is kind]
        if not any(t.tenant == tenant for t in same):
            least = min((self.tenant(kind, t.tenant) for t in same), default=0.0)
            self._by_tenant[kind, tenant] = max(self.tenant(kind, tenant), least)
        if not same:
            waiting = {t.priority for t in others if t.priority in ONLINE}
            least = min((self.of_class(k) for k in waiting), default=0.0)
            self._by_class[kind] = max(self.of_class(kind), least)

    def charge(self, ticket: Ticket, work_s: float) -> None:
        """A ticket was served and costs this much."""
        kind = ticket.priority
        weight = self._params.weights[kind]
        self._by_class[kind] = self.of_class(kind) + work_s / weight
        key = (kind, ticket.tenant)
        self._by_tenant[key] = self._by_tenant.get(key, 0.0) + work_s

    def forget(self, waiting: Iterable[Ticket]) -> None:
        """Drop tenants that do not wait and lie behind those that do; they would be lifted anyway."""
        keys = {(t.priority, t.tenant) for t in waiting}
        self._by_tenant = {k: v for k, v in self._by_tenant.items() if k in keys}

    def of_class(self, kind: PriorityClass) -> float:
        """Seconds served to a class, by weight."""
        return self._by_class.get(kind, 0.0)

    def tenant(self, kind: PriorityClass, tenant: str) -> float:
        """Seconds served to a tenant within a class."""
        return self._by_tenant.get((kind, tenant), 0.0)


def in_order(
    tickets: Iterable[Ticket], shares: Shares, params: AdmissionParams, now: float
) -> Iterator[Ticket]:
    """All tickets, first first, as if each were served in its turn."""
    lines: dict[PriorityClass, list[Ticket]] = {}
    new: list[Ticket] = []
    for ticket in tickets:
        if ticket.has_begun:
            yield ticket
        else:
            new.append(ticket)
    for ticket in new:
        lines.setdefault(ticket.priority, []).append(ticket)
    streams = {kind: _by_tenant(kind, line, shares, params) for kind, line in lines.items()}
    oldest = {kind: min(t.arrived_s for t in line) for kind, line in lines.items()}
    yield from streams.pop(PriorityClass.SYSTEM, ())
    last = streams.pop(PriorityClass.BATCH, iter(()))
    starving = [k for k in streams if now - oldest[k] > params.starvation_s[k]]
    heap = [(k not in starving, shares.of_class(k), k) for k in streams]
    heapq.heapify(heap)
    while heap:
        _, served, kind = heapq.heappop(heap)
        head = next(streams[kind], None)
        if head is not None:
            # Only the first of a starving class is favoured; then it shares again.
            entry = (True, served + head.work_s / params.weights[kind], kind)
            heapq.heappush(heap, entry)
            yield head
    yield from last


def _by_tenant(
    kind: PriorityClass, line: Iterable[Ticket], shares: Shares, params: AdmissionParams
) -> Iterator[Ticket]:
    queues: dict[str, list[Ticket]] = {}
    for ticket in line:
        queues.setdefault(ticket.tenant, []).append(ticket)
    for queue in queues.values():
        # Reversed, to pop from the end. Waiting counts for all alike, so its start will do.
        queue.sort(key=lambda t: (_aged(t, params), t.ticket_id), reverse=True)
    served = {tenant: shares.tenant(kind, tenant) for tenant in queues}
    while queues:
        tenant = _next_tenant(queues, served, params) if len(queues) > 1 else next(iter(queues))
        ticket = queues[tenant].pop()
        served[tenant] += ticket.work_s
        if not queues[tenant]:
            del queues[tenant]
        yield ticket


def _aged(ticket: Ticket, params: AdmissionParams) -> float:
    return ticket.work_s + params.aging * ticket.arrived_s


def _next_tenant(
    queues: dict[str, list[Ticket]], served: dict[str, float], params: AdmissionParams
) -> str:
    least = min(served[tenant] for tenant in queues)

    def rank(tenant: str) -> tuple[float, float, str]:
        head = queues[tenant][-1]
        ahead = served[tenant] - least
        allowed = params.quantum_s if head.hit_share >= params.hot_share else 0.0
        return (max(ahead - allowed, 0.0), _aged(head, params), tenant)

    return min(queues, key=rank)
