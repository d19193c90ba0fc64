"""The queue under arbitrary traffic: nothing is lost, bounds hold, nobody starves, turns are fair."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_core.errors import Overloaded
from penstock_router.admission.lines import Lines
from penstock_router.admission.order import Shares, in_order
from penstock_router.admission.queue import AdmissionQueue
from penstock_router.admission.ticket import AdmissionParams, Bounds, PriorityClass, Ticket
from penstock_router.policy.cost import CostParams
from penstock_router.policy.facts import RoutingRequest, WorkerView

RATE = 1000.0
PARAMS = AdmissionParams(bounds=Bounds(requests=20, tokens=60_000))

tickets = st.lists(
    st.tuples(
        st.integers(1, 20_000),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(list(PriorityClass)),
        st.floats(0, 30),
    ),
    max_size=30,
)


class OneWorker:
    """Serves one prefill at a time."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def pool(self, ticket: Ticket) -> Hashable:
        return 0

    def views(self, ticket: Ticket, now: float) -> Sequence[WorkerView]:
        left = int(max(self.free_at - now, 0.0) * RATE)
        return [
            WorkerView(
                "w", "e", base_s=0.0, slope_s=1 / RATE, backlog_tokens=left, waiting=left > 0
            )
        ]

    def request(self, ticket: Ticket, now: float) -> RoutingRequest:
        return RoutingRequest(ticket.ticket_id, "m", ticket.prompt_tokens, 1, {}, 1)

    def seed(self, ticket: Ticket) -> int:
        return 0


def made(number: int, facts: tuple[int, str, PriorityClass, float]) -> Ticket:
    tokens, tenant, kind, arrived = facts
    return Ticket(f"t{number}", tenant, kind, tokens, arrived, work_s=tokens / RATE)


@settings(max_examples=100, deadline=None)
@given(tickets)
def test_every_request_that_was_let_in_is_served_once(
    asked: list[tuple[int, str, PriorityClass, float]],
) -> None:
    queue, worker, now = AdmissionQueue(PARAMS, CostParams()), OneWorker(), 0.0
    admitted, served = [], []
    for number, facts in enumerate(asked):
        each = made(number, facts)
        room = len(queue) < 20 and queue.tokens + each.prompt_tokens <= 60_000
        try:
            queue.offer(each)
        except Overloaded:
            assert not room
        else:
            assert room
            admitted.append(each.ticket_id)
    assert queue.tokens <= 60_000
    for _ in range(3 * len(asked) + 1):
        for placement in queue.placements(worker, now):
            assert placement.error is None
            served.append(placement.ticket.ticket_id)
            worker.free_at = max(worker.free_at, now) + placement.ticket.prompt_tokens / RATE
        now = max(worker.free_at, now) + 0.001
    assert sorted(served) == sorted(admitted)
    assert (len(queue), queue.tokens, queue.size_bytes) == (0, 0, 0)


@settings(max_examples=100, deadline=None)
@given(tickets)
def test_the_order_is_whole_and_keeps_system_first_and_batch_last(
    asked: list[tuple[int, str, PriorityClass, float]],
) -> None:
    waiting = [made(n, facts) for n, facts in enumerate(asked)]
    found = list(in_order(Lines(PARAMS, waiting), Shares(PARAMS), PARAMS, 30.0))
    assert sorted(t.ticket_id for t in found) == sorted(t.ticket_id for t in waiting)
    kinds = [t.priority for t in found]
    assert kinds == sorted(
        kinds, key=lambda k: {PriorityClass.SYSTEM: 0, PriorityClass.BATCH: 2}.get(k, 1)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(100, 3000), min_size=10, max_size=30), st.integers(100, 3000))
def test_backlogged_tenants_never_differ_by_more_than_one_request(
    sizes: list[int], other: int
) -> None:
    shares = Shares(PARAMS)
    kind = PriorityClass.STANDARD
    waiting = [made(n, (size, "many", kind, 0.0)) for n, size in enumerate(sizes)]
    waiting += [made(100 + n, (other, "few", kind, 0.0)) for n in range(40)]
    served = {"many": 0.0, "few": 0.0}
    longest = max(*sizes, other) / RATE
    while any(t.tenant == "many" for t in waiting) and any(t.tenant == "few" for t in waiting):
        first = next(in_order(Lines(PARAMS, waiting), shares, PARAMS, 0.0))
        assert abs(served["many"] - served["few"]) <= longest + 1e-9
        shares.charge(first, first.work_s)
        served[first.tenant] += first.work_s
        waiting.remove(first)


def test_a_newcomer_has_saved_nothing_up() -> None:
    shares = Shares(PARAMS)
    old = made(1, (1000, "old", PriorityClass.STANDARD, 0.0))
    shares.joins(old, [])
    shares.charge(old, 50.0)
    new = made(2, (1000, "new", PriorityClass.STANDARD, 0.0))
    shares.joins(new, [old])
    assert shares.tenant(PriorityClass.STANDARD, "new") == shares.tenant(
        PriorityClass.STANDARD, "old"
    )
    assert replace(PARAMS, aging=1.0) == PARAMS
