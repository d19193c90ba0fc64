"""What a crowd in the router's queue costs: CPU time of an event, of a placement, of a decision.

A thousand requests wait for workers that compute one prompt after the other; each is held in part by
three of the workers. Whoever goes is replaced by a new one. Time goes on in steps, as the workers'
state streams tell of it; each step the queue is asked who goes. No engine, no network: the queue and
``decide`` as they serve.

    python benchmarks/waiting.py [--workers 64] [--waiting 1000] [--events 300] [--json]
"""

import argparse
import json
import random
import time
from collections.abc import Hashable, Sequence

from penstock_router.admission.queue import AdmissionQueue
from penstock_router.admission.ticket import AdmissionParams, Bounds, PriorityClass, Ticket
from penstock_router.policy.cost import CostParams
from penstock_router.policy.facts import Match, RoutingRequest, WorkerView

RATE = 8000.0
BOUNDS = Bounds(requests=100_000, tokens=1 << 40, tenant_requests=100_000, tenant_tokens=1 << 40)


class World:
    """Workers and what they hold of the prompts that wait."""

    def __init__(self, workers: int) -> None:
        self.random = random.Random(0)
        self.names = [f"w{n:04d}" for n in range(workers)]
        self.left = [self.random.uniform(0, 2.0) for _ in self.names]
        self.requests: dict[str, RoutingRequest] = {}
        self.decisions = 0
        self._views: list[WorkerView] = []

    def ticket(self, now: float) -> Ticket:
        """A new request."""
        name, tokens = f"t{len(self.requests)}", self.random.randrange(500, 30_000)
        held = {
            worker: Match(int(tokens * self.random.random()))
            for worker in self.random.sample(self.names, 3)
        }
        self.requests[name] = RoutingRequest(name, "m", tokens, tokens // 32, held, len(name))
        work_s = (tokens - max(m.matched_tokens for m in held.values())) / RATE
        return Ticket(name, "t", PriorityClass.STANDARD, tokens, now, work_s=work_s)

    def work(self, seconds: float) -> None:
        """All compute for so long."""
        self.left = [max(each - seconds, 0.0) for each in self.left]
        self.look()

    def look(self) -> None:
        """Make the views anew."""
        self._views = [
            WorkerView(
                name, "e", base_s=0.0, slope_s=1 / RATE, backlog_tokens=int(left * RATE),
                waiting=int(left > 0), utilisation=0.7,
            )
            for name, left in zip(self.names, self.left, strict=True)
        ]  # fmt: skip

    def pool(self, ticket: Ticket) -> Hashable:
        """All serve all."""
        return 0

    def views(self, ticket: Ticket, now: float) -> Sequence[WorkerView]:
        """The workers."""
        return self._views

    def request(self, ticket: Ticket, now: float) -> RoutingRequest:
        """What they hold of it."""
        return self.requests[ticket.ticket_id]

    def seed(self, ticket: Ticket) -> int:
        """One for each."""
        self.decisions += 1
        return self.decisions


def play(workers: int, waiting: int, events: int) -> dict[str, float]:
    """Microseconds of CPU time of an event and of a placement, and how many there were."""
    world, now, placed, spent = World(workers), 0.0, 0, 0.0
    queue = AdmissionQueue(AdmissionParams(bounds=BOUNDS), CostParams())
    for _ in range(waiting):
        queue.offer(world.ticket(now))
    for _ in range(events):
        # About as long as it takes until somewhere a prompt is finished.
        now += 1.0 / workers
        world.work(1.0 / workers)
        gone = 0
        began = time.process_time()
        for placement in queue.placements(world, now):
            assert placement.decision is not None
            assert placement.decision.chosen is not None
            place = world.names.index(placement.decision.chosen.worker_id)
            world.left[place] += placement.decision.chosen.prefill_s
            world.look()
            gone += 1
        spent += time.process_time() - began
        placed += gone
        for _ in range(gone):
            queue.offer(world.ticket(now))
    return {
        "workers": workers,
        "waiting": waiting,
        "placed": placed,
        "event_us": spent / events * 1e6,
        "placement_us": spent / max(placed, 1) * 1e6,
        "seeds_a_second": world.decisions / max(spent, 1e-9),
    }


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--workers", type=int, default=64)
    asked.add_argument("--waiting", type=int, default=1000)
    asked.add_argument("--events", type=int, default=300)
    asked.add_argument("--json", action="store_true")
    args = asked.parse_args()
    found = play(args.workers, args.waiting, args.events)
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:15} {value:,.0f}")


if __name__ == "__main__":
    main()
