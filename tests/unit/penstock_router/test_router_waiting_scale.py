"""How many decisions a crowd costs: counted, not timed."""

from collections.abc import Hashable, Sequence

import pytest

from penstock_router.admission.queue import AdmissionQueue
from penstock_router.admission.ticket import AdmissionParams, PriorityClass, Ticket
from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import decide
from penstock_router.policy.facts import Decision, Match, RoutingRequest, WorkerView

RATE = 1000.0
NOTHING: dict[str, Match] = {}


class Busy:
    """Workers of which one gets nearly free at each release; what is placed there fills it again."""

    def __init__(self, workers: int) -> None:
        names = [f"w{n}" for n in range(workers)]
        self.workers = {
            name: WorkerView(name, "e", base_s=0.0, slope_s=1 / RATE, backlog_tokens=400, waiting=1)
            for name in names
        }
        self.looks = 0

    def pool(self, ticket: Ticket) -> Hashable:
        return 0

    def views(self, ticket: Ticket, now: float) -> Sequence[WorkerView]:
        self.looks += 1
        return list(self.workers.values())

    def request(self, ticket: Ticket, now: float) -> RoutingRequest:
        return RoutingRequest(ticket.ticket_id, "m", ticket.prompt_tokens, 31, NOTHING, 7)

    def seed(self, ticket: Ticket) -> int:
        return 1

    def fill(self, name: str, tokens: int) -> None:
        self.workers[name] = self.workers[name]._replace(backlog_tokens=tokens, waiting=1)

    def place(self, waiting: AdmissionQueue, now: float) -> int:
        """Carry a round out; returns how many went."""
        gone = 0
        for placement in waiting.placements(self, now):
            assert placement.decision is not None
            assert placement.decision.chosen is not None
            self.fill(placement.decision.chosen.worker_id, placement.ticket.prompt_tokens)
            gone += 1
        return gone


@pytest.fixture
def decisions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that were decided, one after the other."""
    made: list[str] = []

    def counted(
        workers: Sequence[WorkerView],
        request: RoutingRequest,
        now: float,
        seed: int,
        params: CostParams,
    ) -> Decision:
        made.append(request.request_id)
        return decide(workers, request, now, seed, params)

    monkeypatch.setattr("penstock_router.admission.queue.decide", counted)
    return made


def crowd(count: int) -> AdmissionQueue:
    waiting = AdmissionQueue(AdmissionParams(), CostParams())
    for number in range(count):
        facts = (f"t{number:04d}", "tenant", PriorityClass.STANDARD, 2000 + number)
        waiting.offer(Ticket(*facts, arrived_s=0.0, work_s=(2000 + number) / RATE))
    return waiting


@pytest.mark.parametrize("count", [100, 1000])
def test_a_release_costs_a_decision_and_not_one_for_each_that_waits(
    count: int, decisions: list[str]
) -> None:
    waiting, world = crowd(count), Busy(64)
    for number in range(40):
        world.fill(f"w{number}", 0)
        assert world.place(waiting, float(number)) == 1
    assert len(waiting) == count - 40
    assert len(decisions) == 40


def test_events_that_leave_no_worker_idle_cost_no_decision(decisions: list[str]) -> None:
    waiting, world = crowd(1000), Busy(64)
    for number in range(100):
        world.fill(f"w{number % 64}", 100 + number)
        assert world.place(waiting, float(number)) == 0
    assert decisions == []
    assert world.looks == 100


def test_one_that_may_go_costs_no_more_decisions_than_come_before_it(
    decisions: list[str],
) -> None:
    waiting, world = crowd(1000), Busy(64)
    waiting.offer(
        Ticket("short", "tenant", PriorityClass.STANDARD, 90, arrived_s=1.93, work_s=0.09)
    )
    world.fill("w0", 100)
    assert world.place(waiting, 3.0) == 1
    assert decisions[-1] == "short"
    assert len(decisions) <= AdmissionParams().plan_limit
