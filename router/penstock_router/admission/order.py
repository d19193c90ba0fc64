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

from penstock_router.admission.lines import Lines, Place
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


def in_order(lines: Lines, shares: Shares, params: AdmissionParams, now: float) -> Iterator[Ticket]:
    """All tickets, first first, as if each were served in its turn."""
    yield from lines.begun()
    streams = {kind: _of_class(kind, lines, shares, params) for kind in lines.classes()}
    yield from streams.pop(PriorityClass.SYSTEM, ())
    last = streams.pop(PriorityClass.BATCH, iter(()))
    heap = [
        (now - lines.oldest_s(kind) <= params.starvation_s[kind], shares.of_class(kind), kind)
        for kind in streams
    ]
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


def _of_class(
    kind: PriorityClass, lines: Lines, shares: Shares, params: AdmissionParams
) -> Iterator[Ticket]:
    """A class's tickets: of the tenant that was served least the shortest, again and again."""
    waiting = {tenant: iter(line) for tenant, line in lines.tenants(kind).items()}
    heads = {tenant: next(line) for tenant, line in waiting.items()}
    served = {tenant: shares.tenant(kind, tenant) for tenant in heads}
    while heads:
        tenant = _next_tenant(heads, served, params) if len(heads) > 1 else next(iter(heads))
        ticket = heads[tenant].ticket
        served[tenant] += ticket.work_s
        following = next(waiting[tenant], None)
        if following is None:
            del heads[tenant], served[tenant]
        else:
            heads[tenant] = following
        yield ticket


def _next_tenant(heads: dict[str, Place], served: dict[str, float], params: AdmissionParams) -> str:
    least = min(served.values())

    def rank(tenant: str) -> tuple[float, float, str]:
        head = heads[tenant]
        ahead = served[tenant] - least
        allowed = params.quantum_s if head.ticket.hit_share >= params.hot_share else 0.0
        return (max(ahead - allowed, 0.0), head.aged_s, tenant)

    return min(heads, key=rank)
