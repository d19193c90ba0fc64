"""The edge of the router's queue: coroutines wait here until the queue lets their requests go."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from penstock_core.errors import DeadlineExceeded, PenstockError
from penstock_router.admission.queue import AdmissionQueue, Placement
from penstock_router.admission.ticket import Ticket
from penstock_router.fleet.changes import Changes
from penstock_router.policy.facts import RoutingRequest, WorkerView

_T_co = TypeVar("_T_co", covariant=True)
_T = TypeVar("_T")

_POLL_S = 0.05
_LEAST_S = 0.001
_LONGEST_WAIT_S = 1e8
# A look at a crowd that took longer is followed by as long a rest, for whoever shares the loop.
_QUICK_S = 0.005


class Visitor(Protocol[_T_co]):
    """A request that waits, with what the queue asks about it."""

    def pool(self) -> Hashable:
        """Names the workers that may serve it."""

    def views(self, now: float) -> Sequence[WorkerView]:
        """Those workers as they are now."""

    def request(self, now: float) -> RoutingRequest:
        """What each of them holds of it now."""

    def seed(self) -> int:
        """The seed of its decision."""

    def carry_out(self, placement: Placement) -> _T_co:
        """Do what was decided. Raises PenstockError if it cannot be done."""


@dataclass(slots=True)
class _Seat(Generic[_T]):
    visitor: Visitor[_T]
    result: "asyncio.Future[_T]"


class WaitingRoom(Generic[_T]):
    """Requests between their arrival and their placement. ``run`` must run beside it."""

    def __init__(self, queue: AdmissionQueue, changes: Changes, clock: Callable[[], float]) -> None:
        self.queue = queue
        self._changes = changes
        self._clock = clock
        self._seats: dict[str, _Seat[_T]] = {}
        self._rests_until = 0.0
        self._waits = asyncio.Event()

    async def place(self, ticket: Ticket, visitor: Visitor[_T], undo: Callable[[_T], None]) -> _T:
        """Wait for a placement; ``undo`` takes one back that came too late for its caller.

        Raises:
            Overloaded, QuotaExceeded: the queue is full, or the first token would come too late.
            DeadlineExceeded: the deadline passed.
            PenstockError: what carrying it out raised.
        """
        seat: _Seat[_T] = _Seat(visitor, asyncio.get_running_loop().create_future())
        left = ticket.deadline_s - self._clock()
        self.queue.offer(ticket)
        self._seats[ticket.ticket_id] = seat
        try:
            if self._clock() >= self._rests_until:
                self.pump()
            if seat.result.done():
                placed: _T = seat.result.result()
                return placed
            self._waits.set()
            self._changes.notify()
            async with asyncio.timeout(min(left, _LONGEST_WAIT_S)):
                return await asyncio.shield(seat.result)
        except TimeoutError:
            self._take_back(seat, undo)
            raise DeadlineExceeded("no worker was free in time") from None
        except asyncio.CancelledError:
            self._take_back(seat, undo)
            raise
        finally:
            self.queue.remove(ticket.ticket_id)
            del self._seats[ticket.ticket_id]

    async def run(self) -> None:
        """Look again whenever the picture changes or a worker is foreseen to open."""
        while True:
            if not len(self.queue):  # most changes are nobody's concern then
                self._waits.clear()
                await self._waits.wait()
            wake_s = self.queue.wake_at() - self._clock()
            await self._changes.wait(max(min(wake_s, _POLL_S), _LEAST_S))
            rest_s = self._rests_until - self._clock()
            if rest_s > 0:
                await asyncio.sleep(rest_s)
            self.pump()

    def pump(self) -> None:
        """Let go whoever may."""
        if not len(self.queue):
            return
        began = self._clock()
        self._let_go()
        ended = self._clock()
        if ended - began > _QUICK_S:
            self._rests_until = ended + (ended - began)

    def _let_go(self) -> None:
        for placement in self.queue.placements(self, self._clock()):
            seat = self._seats[placement.ticket.ticket_id]
            try:
                if placement.error is not None:
                    raise placement.error
                result = seat.visitor.carry_out(placement)
            except PenstockError as error:
                seat.result.set_exception(error)
            else:
                seat.result.set_result(result)

    def pool(self, ticket: Ticket) -> Hashable:
        """As ``Lookup`` wants it."""
        return self._seats[ticket.ticket_id].visitor.pool()

    def views(self, ticket: Ticket, now: float) -> Sequence[WorkerView]:
        """As ``Lookup`` wants it."""
        return self._seats[ticket.ticket_id].visitor.views(now)

    def request(self, ticket: Ticket, now: float) -> RoutingRequest:
        """As ``Lookup`` wants it."""
        return self._seats[ticket.ticket_id].visitor.request(now)

    def seed(self, ticket: Ticket) -> int:
        """As ``Lookup`` wants it."""
        return self._seats[ticket.ticket_id].visitor.seed()

    def _take_back(self, seat: _Seat[_T], undo: Callable[[_T], None]) -> None:
        if not seat.result.done():
            seat.result.cancel()
        elif seat.result.exception() is None:
            undo(seat.result.result())
