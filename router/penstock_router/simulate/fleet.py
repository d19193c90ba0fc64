"""The event loop of a simulation: arrivals, workers, and the policy between them.

Deterministic: events at one time happen in the order in which they were foreseen.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from penstock_router.simulate.engine import EngineModel, Job, Listener, SimWorker
from penstock_router.simulate.trace import TraceRequest

_TELL_EVERY = 256


class Policy(Listener, Protocol):
    """Chooses workers. What it must know, it hears as a listener."""

    def arrive(self, job: Job, now: float) -> None:
        """A request wants a worker."""

    def placements(self, now: float) -> Iterator[tuple[Job, int]]:
        """Requests to send now, each with its worker; those left out wait."""

    def wake_at(self, now: float) -> float:
        """When to ask for placements again if nothing happens before; infinite for never."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation was."""

    jobs: tuple[Job, ...]
    rejected: tuple[Job, ...]
    end_s: float
    busy_s: float
    workers: int
    events: int


Tell = Callable[[int], None]


class Fleet:
    """Workers under one policy."""

    def __init__(self, models: Sequence[EngineModel], policy: Policy) -> None:
        self.workers = [SimWorker(n, model, policy) for n, model in enumerate(models)]
        self._policy = policy
        self._heap: list[tuple[float, int, int, int]] = []
        self._versions = [0] * len(models)
        self._order = count()
        self._woken_at = float("inf")

    def run(self, trace: Sequence[TraceRequest], tell: Tell | None = None) -> Outcome:
        """Play a trace to its end; ``tell`` hears now and then how many requests have come."""
        jobs = [Job(request) for request in trace]
        now, arrived, events = 0.0, 0, 0
        while True:
            self._drop_outdated()
            due = self._heap[0][0] if self._heap else float("inf")
            coming = jobs[arrived].request.arrival_s if arrived < len(jobs) else float("inf")
            now = min(due, coming, self._woken_at)
            if now == float("inf"):
                break
            events += 1
            if due == now:
                self._advance(heapq.heappop(self._heap)[2], now)
            elif coming == now:
                self._policy.arrive(jobs[arrived], now)
                arrived += 1
                if tell is not None and (arrived % _TELL_EVERY == 0 or arrived == len(jobs)):
                    tell(arrived)
                if arrived < len(jobs) and jobs[arrived].request.arrival_s == now:
                    continue  # they came together: decide when all are known
            self._place(now)
        return self._outcome(jobs, events)

    def _place(self, now: float) -> None:
        for job, worker in self._policy.placements(now):
            self.workers[worker].submit(job, now)
            self._foresee(worker)
        self._woken_at = self._policy.wake_at(now)

    def _advance(self, worker: int, now: float) -> None:
        self.workers[worker].advance(now)
        self._foresee(worker)

    def _foresee(self, worker: int) -> None:
        self._versions[worker] += 1
        at = self.workers[worker].next_event()
        if at < float("inf"):
            entry = (at, next(self._order), worker, self._versions[worker])
            heapq.heappush(self._heap, entry)

    def _drop_outdated(self) -> None:
        while self._heap and self._heap[0][3] != self._versions[self._heap[0][2]]:
            heapq.heappop(self._heap)

    def _outcome(self, jobs: Sequence[Job], events: int) -> Outcome:
        served = tuple(j for j in jobs if j.finished_s > 0)
        return Outcome(
            jobs=served,
            rejected=tuple(j for j in jobs if j.rejected),
            end_s=max((j.finished_s for j in served), default=0.0),
            busy_s=sum(w.busy_s for w in self.workers),
            workers=len(self.workers),
            events=events,
        )
