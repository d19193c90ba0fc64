"""How much waits, over all and for each tenant, and whether more may. Pure counts."""

from collections.abc import Callable
from dataclasses import dataclass, field

from penstock_core.errors import Overloaded, QuotaExceeded
from penstock_router.admission.ticket import Bounds, PriorityClass, Ticket


@dataclass(slots=True)
class _Share:
    """What one tenant has waiting in one class."""

    tokens: int = 0
    tickets: dict[str, Ticket] = field(default_factory=dict)


class Held:
    """Counts of the tickets that wait, against their bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self.tokens = self.size_bytes = 0
        self._bounds = bounds
        self._count = 0
        self._shares: dict[tuple[PriorityClass, str], _Share] = {}

    def waiting(self, kind: PriorityClass) -> int:
        """Tickets of a class."""
        return sum(len(s.tickets) for (k, _), s in self._shares.items() if k is kind)

    def one_of_each(self) -> list[Ticket]:
        """A ticket for each class and tenant that has one."""
        return [next(iter(share.tickets.values())) for share in self._shares.values()]

    def add(self, ticket: Ticket) -> None:
        """One more waits."""
        share = self._shares.setdefault((ticket.priority, ticket.tenant), _Share())
        share.tickets[ticket.ticket_id] = ticket
        share.tokens += ticket.prompt_tokens
        self._change(ticket, 1)

    def remove(self, ticket: Ticket) -> None:
        """It waits no longer."""
        share = self._shares[ticket.priority, ticket.tenant]
        del share.tickets[ticket.ticket_id]
        share.tokens -= ticket.prompt_tokens
        if not share.tickets:
            del self._shares[ticket.priority, ticket.tenant]
        self._change(ticket, -1)

    def check(self, ticket: Ticket, retry_s: Callable[[], float]) -> None:
        """Raises Overloaded or QuotaExceeded, with a time to retry, if there is no room for it."""
        bounds, tenant = self._bounds, ticket.tenant
        own = [s for kind in PriorityClass if (s := self._shares.get((kind, tenant))) is not None]
        count = sum(len(share.tickets) for share in own)
        own_tokens = sum(share.tokens for share in own) + ticket.prompt_tokens
        if count >= bounds.tenant_requests or own_tokens > bounds.tenant_tokens:
            raise QuotaExceeded(
                f"tenant {tenant!r} has {count} requests waiting", retry_after_s=retry_s()
            )
        if (
            self._count >= bounds.requests
            or self.tokens + ticket.prompt_tokens > bounds.tokens
            or self.size_bytes + ticket.size_bytes > bounds.size_bytes
        ):
            raise Overloaded(f"{self._count} requests are waiting already", retry_after_s=retry_s())

    def _change(self, ticket: Ticket, sign: int) -> None:
        self._count += sign
        self.tokens += sign * ticket.prompt_tokens
        self.size_bytes += sign * ticket.size_bytes
