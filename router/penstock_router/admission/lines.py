"""Who waits, in lines: one for each class and tenant, kept in order as tickets come, go and change.

A line is sorted by predicted prefill, aged by waiting. All age alike, so the clock does not change
it: only a new prediction does, and that is heard of by ``changed`` and taken in by ``settle``, so
that a walk along the lines is not disturbed by what it finds out.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from penstock_router.admission.ticket import AdmissionParams, PriorityClass, Ticket

# Arrivals of tickets that have left, which may be kept.
_SPARE = 64


class Place(NamedTuple):
    """A ticket's place in its line. Ids are unique, so tickets are never compared."""

    aged_s: float
    ticket_id: str
    ticket: Ticket


class _Class:
    """The lines of one class, by tenant, and who came to them first."""

    def __init__(self, params: AdmissionParams) -> None:
        self.lines: dict[str, list[Place]] = {}
        self._params = params
        self._places: dict[str, Place] = {}
        self._arrivals: list[tuple[float, str]] = []

    def add(self, ticket: Ticket) -> None:
        self._enter(ticket)
        heapq.heappush(self._arrivals, (ticket.arrived_s, ticket.ticket_id))
        if len(self._arrivals) > 2 * len(self._places) + _SPARE:
            self._arrivals = [a for a in self._arrivals if a[1] in self._places]
            heapq.heapify(self._arrivals)

    def remove(self, ticket: Ticket) -> None:
        place = self._places.pop(ticket.ticket_id)
        line = self.lines[ticket.tenant]
        del line[bisect_left(line, place)]
        if not line:
            del self.lines[ticket.tenant]

    def settle(self, ticket: Ticket) -> None:
        place = self._places.get(ticket.ticket_id)
        if place is not None and place.aged_s != self._aged_s(ticket):
            self.remove(ticket)
            self._enter(ticket)

    def oldest_s(self) -> float:
        while self._arrivals[0][1] not in self._places:
            heapq.heappop(self._arrivals)
        return self._arrivals[0][0]

    def _enter(self, ticket: Ticket) -> None:
        place = Place(self._aged_s(ticket), ticket.ticket_id, ticket)
        self._places[ticket.ticket_id] = place
        insort(self.lines.setdefault(ticket.tenant, []), place)

    def _aged_s(self, ticket: Ticket) -> float:
        # Waiting counts for all alike, so its start will do.
        return ticket.work_s + self._params.aging * ticket.arrived_s


class Lines:
    """All tickets that wait."""

    def __init__(self, params: AdmissionParams, tickets: Iterable[Ticket] = ()) -> None:
        self._params = params
        self._begun: dict[str, Ticket] = {}
        self._classes: dict[PriorityClass, _Class] = {}
        self._changed: list[Ticket] = []
        for ticket in tickets:
            self.add(ticket)

    def add(self, ticket: Ticket) -> None:
        """A ticket joins."""
        if ticket.has_begun:
            self._begun[ticket.ticket_id] = ticket
        else:
            self._classes.setdefault(ticket.priority, _Class(self._params)).add(ticket)

    def remove(self, ticket: Ticket) -> None:
        """A ticket leaves."""
        if ticket.has_begun:
            del self._begun[ticket.ticket_id]
            return
        of_class = self._classes[ticket.priority]
        of_class.remove(ticket)
        if not of_class.lines:
            del self._classes[ticket.priority]

    def changed(self, ticket: Ticket) -> None:
        """Its work is predicted anew."""
        self._changed.append(ticket)

    def settle(self) -> None:
        """Give those that changed their new places."""
        for ticket in self._changed:
            if ticket.priority in self._classes:
                self._classes[ticket.priority].settle(ticket)
        self._changed.clear()

    def begun(self) -> Iterator[Ticket]:
        """Those whose answers have begun, as they came."""
        return iter(self._begun.values())

    def classes(self) -> Iterable[PriorityClass]:
        """The classes that others wait in."""
        return self._classes.keys()

    def tenants(self, kind: PriorityClass) -> dict[str, list[Place]]:
        """The lines of a class that waits; not to be changed."""
        return self._classes[kind].lines

    def oldest_s(self, kind: PriorityClass) -> float:
        """When the first one of a class that waits came."""
        return self._classes[kind].oldest_s()
