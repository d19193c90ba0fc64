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
from penstock_router.index.matching import Known, match
from penstock_router.index.pending import PendingTable, Times
from penstock_router.policy.cost import CostParams
from penstock_router.policy.demand import PrefixDemand, deepest, first_divergent
from penstock_router.policy.facts import Match, RoutingRequest, WorkerView
from penstock_router.simulate.engine import EngineModel, Job

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
        self._views: list[WorkerView | None] = [None] * len(models)
        self._seen: tuple[WorkerView, ...] | None = None
        self._known_views: dict[int, tuple[int, WorkerView]] = {}
        self._views_at = -1.0
        self._used = [0] * len(models)
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
        ticket.work_s = self._least_work_s(job, now)
        self._jobs[asked.request_id] = job
        self._queue.offer(ticket)

    def placements(self, now: float) -> Iterator[tuple[Job, int]]:
        """Whom the queue lets go."""
        if not len(self._queue):
            return
        for placement in self._queue.placements(self, now):
            job = self._jobs.pop(placement.ticket.ticket_id)
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
            self._views[worker] = self._seen = None
            yield job, worker

    def wake_at(self, now: float) -> float:
        """When a worker is foreseen to open."""
        return self._queue.wake_at()

    def pool(self, ticket: Ticket) -> int:
        """All serve all."""
        return 0

    def views(self, ticket: Ticket, now: float) -> Sequence[WorkerView]:
        """Everybody."""
        if now != self._views_at:
            self._views = [None] * len(self._models)
            self._views_at, self._seen = now, None
        if self._seen is None:
            for worker, view in enumerate(self._views):
                if view is None:
                    self._views[worker] = self._view(worker, now)
            self._seen = tuple(view for view in self._views if view is not None)
        return self._seen

    def request(self, ticket: Ticket, now: float) -> RoutingRequest:
        """What each worker holds and computes of it."""
        asked = self._jobs[ticket.ticket_id].request
        matches, size = self._matches(asked.chain), self._models[0].block_tokens
        hot = deepest(asked.blocks, matches, size)
        return RoutingRequest(
            request_id=asked.request_id,
            model="",
            prompt_tokens=asked.prompt_tokens,
            num_blocks=len(asked.blocks),
            matches=matches,
            divergent=first_divergent(asked.blocks, hot),
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
        self._pending.cancel(asked.request_id)

    def finished(self, job: Job, now: float) -> None:
        """A last token is there."""
        event = Finished(job.request.request_id, job.request.output_tokens)
        self._loads[job.worker].apply(event, now)

    def _least_work_s(self, job: Job, now: float) -> float:
        asked = job.request
        matches = self._matches(asked.chain)
        held = max((m.matched_tokens for m in matches.values()), default=0)
        _, slope_s = self._loads[0].prefill_line()
        work_s = slope_s * (asked.prompt_tokens - held)
        hot = deepest(asked.blocks, matches, self._models[0].block_tokens)
        if hot.key is not None:
            self._demand.observe(hot.key, work_s, now)
        return work_s

    def _matches(self, chain: bytes) -> dict[str, Match]:
        return match(self._known, chain, self._places, self._models[0].block_tokens)

    def _view(self, worker: int, now: float) -> WorkerView:
        """How it stands; of one at rest only the utilisation changes."""
        load, known = self._loads[worker], self._known_views.get(worker)
        if known is None or known[0] != load.version or load.changes_by_itself:
            view = self._look(worker, now)
        elif (share := load.utilisation(now)) == known[1].utilisation:
            return known[1]
        else:
            view = known[1]._replace(utilisation=share)
        self._known_views[worker] = (load.version, view)
        return view

    def _look(self, worker: int, now: float) -> WorkerView:
        load, model = self._loads[worker], self._models[worker]
        base_s, slope_s = load.prefill_line()
        return WorkerView(
            worker_id=self._names[worker],
            epoch="simulated",
            trust=load.trust_factor,
            backlog_tokens=load.left_tokens(now),
            running=load.running(),
            waiting=load.waiting(),
            base_s=base_s,
            slope_s=slope_s,
            pair_s=load.prefill.pair_s,
            utilisation=load.utilisation(now),
            output_tokens=load.output_tokens.value,
            max_batch=model.max_active,
            capacity_blocks=0,
            block_tokens=model.block_tokens,
        )
