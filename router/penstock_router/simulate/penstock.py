"""Penstock's own router in a simulation: the production index, load, queue and ``decide``.

Only the clock and the wire are replaced: what a worker's state stream would say is told at once.
"""

from collections.abc import Iterator, Sequence

from penstock_core.blocks import pack_hashes
from penstock_router.admission.queue import AdmissionQueue
from penstock_router.admission.ticket import AdmissionParams, PriorityClass, Ticket
from penstock_router.fleet.load import WorkerLoad
from penstock_router.frames import Admitted, Finished, LoadReport, PrefillDone
from penstock_router.index.index import PrefixIndex
from penstock_router.index.matching import Known
from penstock_router.index.pending import PendingTable, Times
from penstock_router.policy.cost import CostParams
from penstock_router.policy.demand import PrefixDemand
from penstock_router.policy.facts import RoutingRequest, WorkerView
from penstock_router.simulate.engine import EngineModel, Job
from penstock_router.simulate.prompts import Prompt
from penstock_router.simulate.views import Views

_FOREVER_S = 1e9


class PenstockPolicy:
    """A router over simulated workers."""

    def __init__(
        self,
        models: Sequence[EngineModel],
        seed: int,
        cost: CostParams | None = None,
        admission: AdmissionParams | None = None,
    ) -> None:
        self._models = models
        self._seed = seed
        self._names = [f"w{n:04d}" for n in range(len(models))]
        self._loads = [WorkerLoad() for _ in models]
        for load, model in zip(self._loads, models, strict=True):
            load.take_report(LoadReport(prefill_tokens_per_s=model.prefill_rate), 0.0)
        self._index = PrefixIndex()
        for _ in models:
            self._index.acquire()
        self._pending = PendingTable()
        self._known = Known(self._index, self._pending)
        self._places = [(name, slot) for slot, name in enumerate(self._names)]
        self._demand = PrefixDemand()
        self._queue = AdmissionQueue(admission or AdmissionParams(), cost or CostParams())
        self._jobs: dict[str, Job] = {}
        self._prompts: dict[str, Prompt] = {}
        self._views = Views(self._names, models, self._loads)
        self._number = {name: n for n, name in enumerate(self._names)}
        self.decisions = 0

    def arrive(self, job: Job, now: float) -> None:
        """It waits until a worker is open."""
        asked = job.request
        ticket = Ticket(
            ticket_id=asked.request_id,
            tenant=asked.tenant,
            priority=PriorityClass[asked.priority.upper()],
            prompt_tokens=asked.prompt_tokens,
            arrived_s=now,
            deadline_s=now + asked.deadline_s,
        )
        prompt = Prompt(asked, self._models[0].block_tokens)
        ticket.work_s = self._least_work_s(prompt, now)
        self._jobs[asked.request_id] = job
        self._prompts[asked.request_id] = prompt
        self._queue.offer(ticket)

    def placements(self, now: float) -> Iterator[tuple[Job, int]]:
        """Whom the queue lets go."""
        if not len(self._queue):
            return
        for placement in self._queue.placements(self, now):
            job = self._jobs.pop(placement.ticket.ticket_id)
            del self._prompts[placement.ticket.ticket_id]
            if placement.error is not None or placement.decision is None:
                job.rejected = True
                continue
            chosen = placement.decision.chosen
            assert chosen is not None
            worker = self._number[chosen.worker_id]
            asked = job.request
            uncached = int(chosen.uncached_tokens)
            self._loads[worker].reserve(asked.request_id, uncached, now, _FOREVER_S)
            held = chosen.matched_tokens // self._models[worker].block_tokens
            times = Times(eta=now + chosen.ttft_s, expires=_FOREVER_S)
            self._pending.add(chosen.worker_id, asked.request_id, (asked.chain, held), times)
            self._views.changed(worker)
            yield job, worker

    def wake_at(self, now: float) -> float:
        """When a worker is foreseen to open."""
        return self._queue.wake_at()

    def pool(self, ticket: Ticket) -> int:
        """All serve all."""
        return 0

    def views(self, ticket: Ticket, now: float) -> Sequence[WorkerView]:
        """Everybody."""
        return self._views.at(now)

    def request(self, ticket: Ticket, now: float) -> RoutingRequest:
        """What each worker holds and computes of it."""
        prompt = self._prompts[ticket.ticket_id]
        prompt.look(self._known, self._places)
        asked, hot = prompt.request, prompt.hot
        return RoutingRequest(
            request_id=asked.request_id,
            model="",
            prompt_tokens=asked.prompt_tokens,
            num_blocks=len(asked.blocks),
            matches=prompt.matches,
            divergent=prompt.divergent,
            replicas=self._demand.replicas(hot.key, hot.holders, self._names, now),
        )

    def seed(self, ticket: Ticket) -> int:
        """Fixed by the run's seed and the request."""
        self.decisions += 1
        return hash((self._seed, self.decisions)) & (2**64 - 1)

    def admitted(self, job: Job, now: float) -> None:
        """A prefill begins."""
        asked, load = job.request, self._loads[job.worker]
        load.apply(Admitted(asked.request_id, asked.prompt_tokens, job.cached_tokens), now)
        self._views.changed(job.worker)

    def stored(self, worker: int, parent: int, blocks: Sequence[int]) -> None:
        """Blocks are there."""
        packed = pack_hashes(blocks)
        self._index.store(worker, pack_hashes([parent]), packed)
        self._pending.stored(self._names[worker], packed)

    def removed(self, worker: int, blocks: Sequence[int]) -> None:
        """Blocks are gone."""
        self._index.remove(worker, pack_hashes(blocks))

    def prefill_done(self, job: Job, now: float) -> None:
        """A first token is there."""
        asked = job.request
        done = PrefillDone(
            asked.request_id,
            job.cached_tokens,
            asked.prompt_tokens - job.cached_tokens,
            job.started_s - job.sent_s,
            now - job.started_s,
            now - job.sent_s,
        )
        self._loads[job.worker].apply(done, now)
        self._views.changed(job.worker)
        self._pending.cancel(asked.request_id)

    def finished(self, job: Job, now: float) -> None:
        """A last token is there."""
        event = Finished(job.request.request_id, job.request.output_tokens)
        self._loads[job.worker].apply(event, now)
        self._views.changed(job.worker)

    def _least_work_s(self, prompt: Prompt, now: float) -> float:
        prompt.look(self._known, self._places)
        held = max((m.matched_tokens for m in prompt.matches.values()), default=0)
        _, slope_s = self._loads[0].prefill_line()
        work_s = slope_s * (prompt.request.prompt_tokens - held)
        if prompt.hot.key is not None:
            self._demand.observe(prompt.hot.key, work_s, now)
        return work_s
