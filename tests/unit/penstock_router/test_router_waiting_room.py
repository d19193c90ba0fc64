"""The edge of the queue: it leaves the event loop to others while a crowd waits."""

import asyncio
from collections.abc import Hashable, Sequence

from penstock_router.admission.queue import AdmissionQueue, Placement
from penstock_router.admission.ticket import AdmissionParams, PriorityClass, Ticket
from penstock_router.admission.waiting_room import WaitingRoom
from penstock_router.fleet.changes import Changes
from penstock_router.policy.cost import CostParams
from penstock_router.policy.facts import RoutingRequest, WorkerView


class Clock:
    """A clock that looking at a prompt moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """A visitor that takes so long to look at."""

    def __init__(self, name: str, clock: Clock, seconds: float) -> None:
        self.name, self.clock, self.seconds = name, clock, seconds

    def pool(self) -> Hashable:
        return 0

    def views(self, now: float) -> Sequence[WorkerView]:
        return [WorkerView("w", "e")]

    def request(self, now: float) -> RoutingRequest:
        self.clock.now += self.seconds
        return RoutingRequest(self.name, "m", 100, 3, {}, 7)

    def seed(self) -> int:
        return 1

    def carry_out(self, placement: Placement) -> str:
        return self.name


def ticket(name: str) -> Ticket:
    return Ticket(name, "tenant", PriorityClass.STANDARD, 100, 0.0)


async def arrive(look_s: float) -> tuple[WaitingRoom[str], "asyncio.Task[str]"]:
    """Two requests, the second right after the first was placed."""
    clock = Clock()
    queue = AdmissionQueue(AdmissionParams(), CostParams())
    room: WaitingRoom[str] = WaitingRoom(queue, Changes(), clock)
    assert await room.place(ticket("a"), Slow("a", clock, look_s), lambda gone: None) == "a"
    second = asyncio.create_task(
        room.place(ticket("b"), Slow("b", clock, look_s), lambda gone: None)
    )
    await asyncio.sleep(0)
    return room, second


async def test_a_quick_look_is_followed_by_the_next_at_once() -> None:
    _, second = await arrive(0.001)
    assert await second == "b"


async def test_a_long_look_is_followed_by_as_long_a_rest() -> None:
    room, second = await arrive(0.02)
    await asyncio.sleep(0)
    assert not second.done()
    room.pump()
    assert await second == "b"
