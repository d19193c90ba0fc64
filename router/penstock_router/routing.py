"""Makes decisions: looks a prompt up in the index, asks the policy, records, reserves, signs.

A request waits in the router's queue until a worker is open for it (late binding); one that counts
on blocks another is computing waits for them there, so that what was predicted is what is found.
"""

import random
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from opentelemetry import trace

from penstock.common.v1 import lease_pb2
from penstock_core.errors import NoWorker, Rejected
from penstock_core.ids import new_id
from penstock_core.security import leases
from penstock_core.telemetry import semconv, tracing
from penstock_router.admission.queue import AdmissionQueue, Placement
from penstock_router.admission.ticket import AdmissionParams, PriorityClass, Ticket
from penstock_router.admission.waiting_room import WaitingRoom
from penstock_router.decisions.book import DecisionRecord, Inputs
from penstock_router.fleet.changes import Changes
from penstock_router.fleet.fleet import RETRY_AFTER_S
from penstock_router.fleet.tracked import Picture, TrackedWorker
from penstock_router.index.pending import Times
from penstock_router.lookup import PromptLookup
from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import decide
from penstock_router.policy.facts import Candidate, RoutingRequest, WorkerView
from penstock_router.prompts import PreparedRequest

LEASE_TTL_S = 10.0
# Candidates that a trace tells of; the decision's record has all.
_MAX_SHOWN = 8


class Attempt(NamedTuple):
    """One try to place a request.

    Attributes:
        number: from 0.
        excluded: workers that failed this request before.
        ttl_s: how long the chosen worker's load counts the request before the worker confirms it.
        deadline: clock time after which waiting is pointless.
    """

    number: int
    excluded: frozenset[str]
    ttl_s: float
    deadline: float


class Routed(NamedTuple):
    """Where a request goes."""

    worker: TrackedWorker
    record: DecisionRecord
    chosen: Candidate
    lease: lease_pb2.Lease


@dataclass(frozen=True, slots=True)
class Policies:
    """The parameters that serve, and those of a shadow that only tells what it would do."""

    cost: CostParams = field(default_factory=CostParams)
    admission: AdmissionParams = field(default_factory=AdmissionParams)
    shadow: CostParams | None = None


class Router:
    """Decides over one picture. Its ``room`` must run beside it."""

    def __init__(
        self,
        picture: Picture,
        changes: Changes,
        lease_secret: bytes,
        policies: Policies | None = None,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self.picture = picture
        self.policies = policies or Policies()
        self._changes = changes
        self._lease_secret = lease_secret
        self.digest = self.policies.cost.digest()
        self.shadow_digest = self.policies.shadow.digest() if self.policies.shadow else ""
        self._unix_time = unix_time
        self._random = random.Random()
        self._tickets = count()
        self._tracer = trace.get_tracer("penstock.router")
        queue = AdmissionQueue(self.policies.admission, self.policies.cost)
        self.room: WaitingRoom[Routed] = WaitingRoom(queue, changes, picture.clock)

    async def route(self, prepared: PreparedRequest, attempt: Attempt) -> tuple[Routed, trace.Span]:
        """Choose a worker; returns it with the span of the choice, for what is to hang beneath it.

        Raises:
            NoWorker: nobody can take it; the message says why for each worker.
            Overloaded: too many wait, or its first token would come after its deadline.
            DeadlineExceeded: no worker was open in time.
        """
        with self._tracer.start_span(semconv.SPAN_ROUTE) as span:
            now = self.picture.clock()
            ticket = Ticket(
                ticket_id=f"{next(self._tickets):012}",
                tenant=prepared.principal.tenant,
                priority=PriorityClass(prepared.priority),
                prompt_tokens=prepared.prefix_tokens,
                arrived_s=now,
                size_bytes=prepared.request.ByteSize(),
                deadline_s=attempt.deadline,
                has_begun=prepared.request.resume.attempt > 0,
            )
            visitor = _Visitor(self, prepared, attempt, span)
            ticket.work_s = visitor.lookup.arrived()
            kind, metrics = ticket.priority.name.lower(), self.picture.metrics
            try:
                routed = await self.room.place(ticket, visitor, self._undo)
            except Rejected as error:
                metrics.refused(error.slug, kind)
                raise
            metrics.queued(routed.record.queued_s, kind)
            return routed, span

    def release(self, routed: Routed, *, status: str = "", settle_s: float = 0.0) -> None:
        """The attempt is over. Blocks that it computed may take ``settle_s`` to be reported."""
        request_id = routed.record.request_id
        routed.worker.load.release(request_id)
        if settle_s:
            self.picture.pending.settle(request_id, self.picture.clock() + settle_s)
        else:
            self.picture.pending.cancel(request_id)
        self.picture.book.stream_over(routed.record.decision_id, status)
        self._changes.notify()

    def carry_out(
        self, prepared: PreparedRequest, attempt: Attempt, record: DecisionRecord
    ) -> Routed:
        """Reserve what was decided. Raises NoWorker if there is nobody."""
        self.picture.book.add(record)
        self.picture.metrics.decided(record.decision_us / 1e6)
        if self.policies.shadow is not None:
            agrees = record.shadow_worker_id == record.worker_id
            self.picture.metrics.shadowed(agrees=agrees)
        chosen = record.decision.chosen
        if chosen is None:
            raise NoWorker(_nobody(record), retry_after_s=RETRY_AFTER_S)
        worker = next(w for w in prepared.workers if w.worker_id == chosen.worker_id)
        self._reserve(prepared, worker, chosen, attempt)
        return Routed(worker, record, chosen, self._lease(prepared, record, chosen))

    def shadow(self, inputs: Inputs) -> str:
        """Whom the shadow policy would have chosen from the same inputs; empty without one."""
        if self.policies.shadow is None:
            return ""
        views, request = inputs.views, inputs.request
        chosen = decide(views, request, inputs.now, inputs.seed, self.policies.shadow).chosen
        return chosen.worker_id if chosen else ""

    def waiting(self) -> dict[str, int]:
        """Requests in the queue, by class."""
        return {kind.name.lower(): self.room.queue.waiting(kind) for kind in PriorityClass}

    def seed(self) -> int:
        """A fresh seed."""
        return self._random.getrandbits(64)

    def unix_time(self) -> float:
        """The time of day."""
        return self._unix_time()

    def _undo(self, routed: Routed) -> None:
        self.release(routed, status="cancelled")

    def _reserve(
        self, prepared: PreparedRequest, worker: TrackedWorker, chosen: Candidate, attempt: Attempt
    ) -> None:
        now, request_id = self.picture.clock(), prepared.request.request_id
        worker.breaker.sent(now)
        worker.load.reserve(
            request_id, int(chosen.uncached_tokens), now, attempt.ttl_s, is_batch=prepared.is_batch
        )
        worker.adapters.asked(prepared.request.adapter, worker.load.report, now)
        facts = worker.facts
        assert facts is not None
        work = (prepared.hashes(facts), chosen.matched_tokens // facts.block_tokens)
        times = Times(eta=now + chosen.ttft_s, expires=now + attempt.ttl_s)
        self.picture.pending.add(worker.worker_id, request_id, work, times)

    def _lease(
        self, prepared: PreparedRequest, record: DecisionRecord, chosen: Candidate
    ) -> lease_pb2.Lease:
        claims = lease_pb2.LeaseClaims(
            worker_id=chosen.worker_id,
            epoch=chosen.epoch,
            request_id=record.request_id,
            decision_id=record.decision_id,
            tenant=prepared.principal.tenant,
            priority=prepared.priority,
            expires_unix_ms=int((self._unix_time() + LEASE_TTL_S) * 1000),
            cache_salt=prepared.cache_salt,
            adapter=prepared.request.adapter,
        )
        if not self._lease_secret:
            # A worker without a secret of its own checks nothing; the claims still carry the salt.
            return lease_pb2.Lease(claims=claims.SerializeToString())
        return leases.sign(claims, self._lease_secret)


class _Visitor:
    """One attempt in the waiting room."""

    def __init__(
        self, router: Router, prepared: PreparedRequest, attempt: Attempt, span: trace.Span
    ) -> None:
        self._router = router
        self._prepared = prepared
        self._attempt = attempt
        self._span = span
        self.lookup = PromptLookup(router.picture, prepared)
        self._trace_id = tracing.trace_id(span)
        unfit = frozenset(prepared.excluded.items())
        self._pool = (
            tuple([w.worker_id for w in prepared.workers]),
            attempt.excluded,
            unfit,
            prepared.is_batch,
        )
        self._arrived_s = router.picture.clock()
        self._looked_at = 0.0
        self._seed = 0

    def pool(self) -> Hashable:
        """The workers of its model, those that it cannot or will not have, and how it sees them."""
        return self._pool

    def views(self, now: float) -> Sequence[WorkerView]:
        """They, as the picture has them."""
        self._router.picture.pending.expire(now)
        views = []
        for worker in self._prepared.workers:
            worker.load.expire(now)
            why = self._prepared.excluded.get(worker.worker_id, "")
            views.append(worker.view(now, why, for_batch=self._prepared.is_batch))
        return views

    def request(self, now: float) -> RoutingRequest:
        """What each holds."""
        self._looked_at = time.perf_counter()
        return self.lookup.request(self._attempt.excluded)

    def seed(self) -> int:
        """Kept, for the record."""
        self._seed = self._router.seed()
        return self._seed

    def carry_out(self, placement: Placement) -> Routed:
        """Record it and reserve."""
        router, request = self._router, placement.request
        assert placement.decision is not None
        assert request is not None
        seconds = time.perf_counter() - self._looked_at
        inputs = Inputs(placement.now, router.policies.cost, placement.views, request, self._seed)
        record = DecisionRecord(
            decision_id=new_id("dec"),
            request_id=request.request_id,
            attempt=self._attempt.number,
            unix_time_s=router.unix_time(),
            model=request.model,
            policy_digest=router.digest,
            inputs=inputs,
            decision=placement.decision,
            decision_us=int(seconds * 1e6),
            trace_id=self._trace_id,
            queued_s=placement.now - self._arrived_s,
            shadow_worker_id=router.shadow(inputs),
            shadow_digest=router.shadow_digest,
            tenant=self._prepared.principal.tenant,
            prefix=self.lookup.prefix(),
        )
        _describe(self._span, record)
        return router.carry_out(self._prepared, self._attempt, record)


def _describe(span: trace.Span, record: DecisionRecord) -> None:
    if not span.is_recording():
        return
    why, chosen = record.rank(), record.decision.chosen
    # Side by side, as a trace's viewer shows them; the best first.
    shown = why.candidates[:_MAX_SHOWN]
    tracing.set_attributes(
        span,
        (
            (semconv.REQUEST_ID, record.request_id),
            (semconv.DECISION_ID, record.decision_id),
            (semconv.ATTEMPT, record.attempt),
            (semconv.DECISION_REASON, why.reason),
            (semconv.DECISION_MARGIN_S, why.margin_s),
            (semconv.DECISION_QUEUE_S, record.queued_s),
            (semconv.DECISION_CANDIDATES, [c.worker_id for c in shown]),
            (semconv.CANDIDATE_COSTS_S, [c.total_s for c in shown]),
            (semconv.CANDIDATE_TTFTS_S, [c.ttft_s for c in shown]),
            (semconv.CANDIDATE_CACHED_TOKENS, [c.matched_tokens for c in shown]),
            (semconv.CANDIDATE_REFUSALS, [c.excluded_because for c in shown]),
            (semconv.WORKER_ID, record.worker_id or None),
            (semconv.PREDICTED_CACHED_TOKENS, record.predicted_cached_tokens),
            (semconv.PREDICTED_TTFT_S, chosen.ttft_s if chosen else None),
        ),
    )


def _nobody(record: DecisionRecord) -> str:
    why = "; ".join(f"{c.worker_id}: {c.excluded_because}" for c in record.rank().candidates)
    return f"no worker can take a request for {record.model!r} now ({why})"
