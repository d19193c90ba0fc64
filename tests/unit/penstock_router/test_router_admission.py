"""The router's queue: who may wait, who goes first, and when."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import pytest

from penstock_core.errors import Overloaded, QuotaExceeded
from penstock_router.admission.queue import AdmissionQueue, Placement
from penstock_router.admission.ticket import AdmissionParams, Bounds, PriorityClass, Ticket
from penstock_router.policy.cost import CostParams
from penstock_router.policy.facts import Match, RoutingRequest, WorkerView

RATE = 1000.0


def ticket(name: str, tokens: int = 1000, **facts: object) -> Ticket:
    plain = Ticket(name, "tenant", PriorityClass.STANDARD, tokens, 0.0, work_s=tokens / RATE)
    for field, value in facts.items():
        setattr(plain, field, value)
    return plain


def worker(name: str, **facts: object) -> WorkerView:
    plain = WorkerView(name, "epoch", base_s=0.0, slope_s=1 / RATE)
    return plain._replace(**facts)  # type: ignore[arg-type]


class Scene:
    """Workers and prompts that a test sets out; a placed request becomes backlog."""

    def __init__(self, *workers: WorkerView) -> None:
        self.workers = {w.worker_id: w for w in workers}
        self.matches: dict[str, dict[str, Match]] = {}

    def pool(self, ticket: Ticket) -> Hashable:
        return 0

    def views(self, ticket: Ticket, now: float) -> Sequence[WorkerView]:
        return list(self.workers.values())

    def request(self, ticket: Ticket, now: float) -> RoutingRequest:
        held = self.matches.get(ticket.ticket_id, {})
        return RoutingRequest(ticket.ticket_id, "m", ticket.prompt_tokens, 31, held, 7)

    def seed(self, ticket: Ticket) -> int:
        return 1

    def carry_out(self, placement: Placement) -> str:
        assert placement.decision is not None
        assert placement.decision.chosen is not None
        chosen = placement.decision.chosen
        view = self.workers[chosen.worker_id]
        self.workers[chosen.worker_id] = view._replace(
            backlog_tokens=view.backlog_tokens + int(chosen.uncached_tokens),
            waiting=view.waiting + 1,
        )
        return chosen.worker_id


def queue(**params: object) -> AdmissionQueue:
    return AdmissionQueue(replace(AdmissionParams(), **params), CostParams())  # type: ignore[arg-type]


def go(waiting: AdmissionQueue, scene: Scene, now: float = 0.0) -> list[tuple[str, str]]:
    """Carry out a round: (ticket, worker or error) in order."""
    gone = []
    for placement in waiting.placements(scene, now):
        name = placement.ticket.ticket_id
        if placement.error is not None:
            gone.append((name, type(placement.error).__name__))
        else:
            gone.append((name, scene.carry_out(placement)))
    return gone


def test_a_request_goes_at_once_where_a_worker_is_open() -> None:
    waiting = queue()
    waiting.offer(ticket("a"))
    assert go(waiting, Scene(worker("w"))) == [("a", "w")]
    assert len(waiting) == 0


def test_the_shortest_prefill_goes_first_and_the_rest_wait_here() -> None:
    waiting = queue()
    for name, tokens in (("long", 9000), ("short", 1000), ("middle", 5000)):
        waiting.offer(ticket(name, tokens))
    assert go(waiting, Scene(worker("w"))) == [("short", "w")]
    assert len(waiting) == 2


def test_what_has_begun_elsewhere_goes_on_before_all_that_is_new() -> None:
    waiting = queue()
    waiting.offer(ticket("urgent", 100, priority=PriorityClass.SYSTEM))
    waiting.offer(ticket("begun", 9000, arrived_s=1.0, has_begun=True))
    assert go(waiting, Scene(worker("w")), now=1.0) == [("begun", "w")]


def test_waiting_makes_up_for_length() -> None:
    waiting = queue(aging=0.5)
    waiting.offer(ticket("long", 9000, arrived_s=0.0))
    waiting.offer(ticket("short", 1000, arrived_s=20.0))
    assert go(waiting, Scene(worker("w")), now=20.0) == [("long", "w")]


def test_a_request_waits_for_the_worker_that_holds_its_prefix_if_that_is_soon_free() -> None:
    waiting = queue()
    waiting.offer(ticket("a", 10_000))
    scene = Scene(worker("holder", backlog_tokens=1000, waiting=1), worker("idle"))
    scene.matches["a"] = {"holder": Match(9900)}
    assert go(waiting, scene) == []
    scene.workers["holder"] = worker("holder")
    assert go(waiting, scene, now=1.0) == [("a", "holder")]


def test_what_waits_for_a_worker_counts_as_its_backlog() -> None:
    waiting = queue()
    scene = Scene(worker("holder", backlog_tokens=200, waiting=1), worker("idle"))
    for n in range(40):
        waiting.offer(ticket(f"t{n:02d}", 1000))
        scene.matches[f"t{n:02d}"] = {"holder": Match(500)}
    gone = go(waiting, scene)
    assert gone, "some spill to the idle worker, although all are cached on the other"
    assert {worker for _, worker in gone} == {"idle"}


def test_an_urgent_class_is_served_before_ordinary_work_and_batch_last() -> None:
    waiting = queue()
    kinds = (PriorityClass.BATCH, PriorityClass.STANDARD, PriorityClass.SYSTEM)
    for kind in kinds:
        waiting.offer(ticket(kind.name, priority=kind))
    order = []
    for _ in kinds:
        order += [name for name, _ in go(waiting, Scene(worker("w")))]
    assert order == ["SYSTEM", "STANDARD", "BATCH"]


def test_classes_share_by_weight_and_a_starving_one_goes_first() -> None:
    waiting = queue()
    for n in range(12):
        waiting.offer(ticket(f"i{n:02d}", priority=PriorityClass.INTERACTIVE))
        waiting.offer(ticket(f"s{n:02d}"))
    order = [go(waiting, Scene(worker("w")))[0][0][0] for _ in range(12)]
    assert order.count("i") == 8, "weights 4 to 2"
    late = queue()
    late.offer(ticket("old"))
    late.offer(ticket("new", 10, priority=PriorityClass.INTERACTIVE, arrived_s=61.0))
    assert go(late, Scene(worker("w", backlog_tokens=40)), now=61.0)[0][0] == "old"


def test_batch_leaves_a_reserve_on_each_worker() -> None:
    waiting = queue()
    waiting.offer(ticket("b", priority=PriorityClass.BATCH))
    assert go(waiting, Scene(worker("w", running=48, max_batch=64))) == []
    assert go(waiting, Scene(worker("w", running=47, max_batch=64))) == [("b", "w")]


def test_a_full_worker_takes_nothing() -> None:
    waiting = queue()
    waiting.offer(ticket("a"))
    assert go(waiting, Scene(worker("w", running=64, max_batch=64))) == []
    full = worker("w", running=2, used_blocks=99, capacity_blocks=100)
    assert go(waiting, Scene(full)) == []


def test_tenants_take_turns_by_the_work_they_caused() -> None:
    waiting = queue()
    for n in range(4):
        waiting.offer(ticket(f"greedy{n}", 1000, tenant="greedy"))
    waiting.offer(ticket("modest", 2000, tenant="modest"))
    order = [go(waiting, Scene(worker("w")))[0][0] for _ in range(3)]
    assert "modest" in order[:2]


def test_a_tenant_may_run_ahead_while_its_prefix_is_hot() -> None:
    waiting = queue(quantum_s=0.5)
    for n in range(4):
        waiting.offer(ticket(f"hot{n}", 1000, tenant="hot", work_s=0.1, hit_share=0.9))
    waiting.offer(ticket("cold", 1000, tenant="cold"))
    scene = Scene(worker("w"))
    scene.matches = {f"hot{n}": {"w": Match(900)} for n in range(4)}
    order = []
    while len(waiting):
        order += [name for name, _ in go(waiting, scene)]
        scene.workers["w"] = worker("w")
    assert order == ["hot0", "hot1", "hot2", "hot3", "cold"]


def test_a_first_token_that_would_come_too_late_is_refused_with_a_time_to_retry() -> None:
    waiting = queue()
    waiting.offer(ticket("first", 5000))
    waiting.offer(ticket("hopeless", 6000, deadline_s=1.0))
    placements = []
    scene = Scene(worker("w"), worker("x", excluded_because="it is draining"))
    for placement in waiting.placements(scene, 0.0):
        placements.append(placement)
        if placement.error is None:
            scene.carry_out(placement)
    # "w" is taken by the first; nobody is open, so the second one is told when its time has come.
    assert [p.ticket.ticket_id for p in placements] == ["first"]
    late = list(waiting.placements(scene, 1.5))
    assert isinstance(late[0].error, Overloaded)
    assert late[0].error.retry_after_s is not None


def test_nobody_who_could_serve_it_is_an_answer_too() -> None:
    waiting = queue()
    waiting.offer(ticket("a"))
    placement = next(waiting.placements(Scene(worker("w", excluded_because="it failed")), 0.0))
    assert placement.decision is not None
    assert placement.decision.chosen is None


@pytest.mark.parametrize(
    ("bounds", "error"),
    [
        (Bounds(requests=1), Overloaded),
        (Bounds(tokens=1500), Overloaded),
        (Bounds(size_bytes=5000), Overloaded),
        (Bounds(tenant_requests=1), QuotaExceeded),
        (Bounds(tenant_tokens=1500), QuotaExceeded),
    ],
)
def test_the_queue_is_bounded_in_requests_tokens_and_bytes(
    bounds: Bounds, error: type[Overloaded]
) -> None:
    waiting = queue(bounds=bounds)
    waiting.offer(ticket("a", size_bytes=4000))
    with pytest.raises(error) as refused:
        waiting.offer(ticket("b", size_bytes=4000))
    assert refused.value.retry_after_s is not None
    waiting.remove("a")
    waiting.offer(ticket("b", size_bytes=4000))


def test_it_tells_when_a_worker_will_open() -> None:
    waiting = queue()
    waiting.offer(ticket("a", 5000))
    assert go(waiting, Scene(worker("w", backlog_tokens=2000)), now=10.0) == []
    assert 11.0 < waiting.wake_at() <= 12.0
    waiting.remove("a")
    assert waiting.wake_at() == float("inf")
