"""What the queue keeps between decisions changes nothing: it does as one that decides all anew."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_router.admission.lines import Lines
from penstock_router.admission.order import Shares, in_order
from penstock_router.admission.queue import AdmissionQueue, Placement
from penstock_router.admission.rules import may_go
from penstock_router.admission.ticket import ONLINE, AdmissionParams, PriorityClass, Ticket
from penstock_router.policy.cost import CostParams, backlog_s
from penstock_router.policy.decide import decide
from penstock_router.policy.facts import Match, RoutingRequest, WorkerView

# Objectives so long that workers are seldom closed to all, and mostly to many.
PARAMS = AdmissionParams(
    plan_limit=12,
    longest_hold_s=3.0,
    slo_s=dict(zip(PriorityClass, (2.0, 2.5, 2.0, 0.0), strict=True)),
)
COST = CostParams()
RATE = 1000.0


@dataclass(slots=True)
class World:
    """Workers that compute, hold and are told of prompts; the same events make the same world."""

    workers: dict[str, WorkerView]
    matches: dict[str, dict[str, Match]] = field(default_factory=dict)
    seeds: Iterator[int] = field(default_factory=count)
    kept: dict[str, dict[str, Match]] = field(default_factory=dict)

    def pool(self, ticket: Ticket) -> Hashable:
        return ticket.tenant == "picky"

    def views(self, ticket: Ticket, now: float) -> Sequence[WorkerView]:
        views = list(self.workers.values())
        if ticket.tenant == "picky":
            views[0] = views[0]._replace(excluded_because="not good enough")
        return views

    def request(self, ticket: Ticket, now: float) -> RoutingRequest:
        # The same object while nothing changed, as the real look-ups give.
        held = self.matches.setdefault(ticket.ticket_id, {})
        kept = self.kept.get(ticket.ticket_id)
        if kept != held:
            kept = self.kept[ticket.ticket_id] = dict(held)
        divergent = None if ticket.prompt_tokens % 3 == 0 else ticket.prompt_tokens
        return RoutingRequest(ticket.ticket_id, "m", ticket.prompt_tokens, 31, kept, divergent)

    def seed(self, ticket: Ticket) -> int:
        return next(self.seeds)

    def place(self, placement: Placement) -> None:
        assert placement.decision is not None
        assert placement.decision.chosen is not None
        chosen = placement.decision.chosen
        view = self.workers[chosen.worker_id]
        self.workers[chosen.worker_id] = view._replace(
            backlog_tokens=view.backlog_tokens + int(chosen.uncached_tokens),
            waiting=view.waiting + 1,
            utilisation=min(view.utilisation + 0.1, 1.0),
        )

    def work(self, seconds: float) -> None:
        """All compute for so long."""
        for name, view in self.workers.items():
            left = max(int(view.backlog_tokens - seconds / view.slope_s), 0)
            gone = view.waiting > 0 and left == 0
            self.workers[name] = view._replace(
                backlog_tokens=left,
                waiting=0 if gone else view.waiting,
                running=(view.running + gone) % 5,
                utilisation=view.utilisation * 0.9,
            )


class Naive:
    """Walks its queue from the front after each placement and decides for everybody anew."""

    def __init__(self, params: AdmissionParams) -> None:
        self.params = params
        self.tickets: dict[str, Ticket] = {}
        self.shares = Shares(params)

    def offer(self, ticket: Ticket) -> None:
        self.shares.joins(ticket, list(self.tickets.values()))
        self.tickets[ticket.ticket_id] = ticket

    def placements(self, world: World, now: float) -> Iterator[tuple[str, Placement | None]]:
        while (gone := self._next(world, now)) is not None:
            del self.tickets[gone[0]]
            if not self.tickets:
                self.shares.forget(())
            yield gone

    def _next(self, world: World, now: float) -> tuple[str, Placement | None] | None:
        plans: dict[str, tuple[float, int]] = {}
        lines = Lines(self.params, self.tickets.values())
        for ticket in islice(
            in_order(lines, self.shares, self.params, now), self.params.plan_limit
        ):
            if ticket.deadline_s <= now:
                return ticket.ticket_id, None
            views = world.views(ticket, now)
            least = min((backlog_s(v, COST) for v in views if not v.excluded_because), default=0.0)
            if least > max(self.params.ahead_s, *(self.params.slo_s[k] for k in ONLINE[1:])):
                continue
            gone = self._consider(ticket, views, plans, world, now)
            if gone is not None:
                return gone
        return None

    def _consider(
        self,
        ticket: Ticket,
        views: Sequence[WorkerView],
        plans: dict[str, tuple[float, int]],
        world: World,
        now: float,
    ) -> tuple[str, Placement | None] | None:
        nothing = (0.0, 0)
        seen = tuple(
            v._replace(planned_s=plan[0], planned=plan[1])
            for v in views
            for plan in (plans.get(v.worker_id, nothing),)
        )
        request = world.request(ticket, now)
        decision = decide(seen, request, now, world.seed(ticket), COST)
        chosen, quickest = decision.chosen, decision.quickest
        assert chosen is not None
        assert quickest is not None
        ticket.work_s = quickest.prefill_s
        ticket.hit_share = quickest.trusted_tokens / ticket.prompt_tokens
        view = next(v for v in seen if v.worker_id == chosen.worker_id)
        held = decision.waits_for and now - ticket.arrived_s < self.params.longest_hold_s
        goes = not held and may_go(ticket, view, chosen, self.params)
        if now + chosen.ttft_s > ticket.deadline_s and not (goes and now <= ticket.arrived_s):
            return ticket.ticket_id, None
        if goes:
            self.shares.charge(ticket, chosen.prefill_s)
            return ticket.ticket_id, Placement(ticket, now, decision, seen, request)
        seconds, requests = plans.get(chosen.worker_id, nothing)
        plans[chosen.worker_id] = (seconds + chosen.prefill_s, requests + 1)
        return None


asked = st.tuples(
    st.integers(300, 12_000),
    st.sampled_from(["a", "a", "b", "picky"]),
    st.sampled_from([PriorityClass.STANDARD] * 3 + list(PriorityClass)),
    st.sampled_from([float("inf")] * 3 + [4.0, 60.0, 900.0, 9000.0]),
)
arrivals = st.tuples(st.just("arrive"), st.lists(asked, min_size=1, max_size=6))
learned = st.tuples(st.just("learn"), st.integers(0, 9), st.integers(0, 5), st.booleans())
passing = st.tuples(st.just("pass"), st.floats(0.01, 3.0))
speeds = st.tuples(st.just("speed"), st.integers(0, 5), st.floats(0.8, 1.3))
happenings = st.one_of(arrivals, learned, learned, passing, passing, passing, speeds)
events = st.lists(happenings, min_size=10, max_size=40)


def world_of(workers: int) -> World:
    views = [
        WorkerView(f"w{n}", "e", base_s=0.0, slope_s=1 / RATE, max_batch=6, trust=1 - n / 50)
        for n in range(workers)
    ]
    return World({v.worker_id: v for v in views})


def happen(world: World, event: tuple[object, ...], waiting: Sequence[str], now: float) -> None:
    """Something other than an arrival or time."""
    names = list(world.workers)
    match event:
        case ("learn", int(which), int(where), bool(coming)) if waiting:
            name, worker = waiting[which % len(waiting)], names[where % len(names)]
            tokens = 40 * (which + 1)
            found = Match(tokens, tokens * coming, now + where, frozenset({"x"} if coming else ()))
            world.matches[name] = world.matches.get(name, {}) | {worker: found}
        case ("speed", int(where), float(factor)):
            worker = names[where % len(names)]
            view = world.workers[worker]
            world.workers[worker] = view._replace(slope_s=view.slope_s * factor)


@settings(max_examples=150, deadline=None)
@given(events, st.integers(2, 5))
def test_the_queue_places_as_one_that_decides_everything_anew(
    told: list[tuple[object, ...]], workers: int
) -> None:
    queue, naive = AdmissionQueue(PARAMS, COST), Naive(PARAMS)
    ours, theirs, now = world_of(workers), world_of(workers), 0.0
    crowd = ("arrive", [(9000 + 700 * n, "a", PriorityClass.STANDARD, 1e9) for n in range(6)])
    for number, event in enumerate([crowd, *told, *[("pass", 2.0)] * 5]):
        if event[0] == "arrive":
            for place, (tokens, tenant, kind, patience) in enumerate(event[1]):  # type: ignore[var-annotated, arg-type]
                facts = (f"t{number}-{place}", tenant, kind, tokens, now)
                ticket = Ticket(*facts, deadline_s=now + patience, work_s=tokens / RATE)
                naive.offer(replace(ticket))
                queue.offer(ticket)
        elif event[0] == "pass":
            now += event[1]  # type: ignore[operator]
            ours.work(event[1])  # type: ignore[arg-type]
            theirs.work(event[1])  # type: ignore[arg-type]
        else:
            for world in (ours, theirs):
                happen(world, event, list(naive.tickets), now)
        assert placed(queue, ours, now) == placed_naively(naive, theirs, now)
        assert next(ours.seeds) == next(theirs.seeds)
        assert {t.ticket_id: (t.work_s, t.hit_share) for t in naive.tickets.values()} == {
            t.ticket_id: (t.work_s, t.hit_share) for t in queue._tickets.values()
        }


def placed(queue: AdmissionQueue, world: World, now: float) -> list[tuple[str, object]]:
    gone: list[tuple[str, object]] = []
    for placement in queue.placements(world, now):
        name = placement.ticket.ticket_id
        if placement.error is None:
            world.place(placement)
        gone.append((name, None if placement.error is not None else placement.decision))
    return gone


def placed_naively(naive: Naive, world: World, now: float) -> list[tuple[str, object]]:
    gone: list[tuple[str, object]] = []
    for name, placement in naive.placements(world, now):
        if placement is not None:
            world.place(placement)
        gone.append((name, placement.decision if placement is not None else None))
    return gone
