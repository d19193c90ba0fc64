"""Makes decisions: looks a prompt up in the index, asks the policy, records, reserves, signs.

A request that counts on blocks another one is computing waits here for them and is decided anew
when they are there (late binding), so that what was predicted is what is found.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import trace

from penstock.common.v1 import lease_pb2
from penstock_core import blocks, leases, semconv, tracing
from penstock_core.errors import NoWorker
from penstock_core.ids import new_id
from penstock_router.changes import Changes
from penstock_router.cost import CostParams
from penstock_router.decisions import DecisionRecord
from penstock_router.facts import Candidate, Decision, Match, RoutingRequest
from penstock_router.fleet import RETRY_AFTER_S
from penstock_router.pending import Times
from penstock_router.policy import decide, first_divergent
from penstock_router.prompts import PreparedRequest
from penstock_router.tracked import Picture, TrackedWorker

_LEASE_TTL_S = 10.0
# Blocks that have not come by then are not waited for any longer.
_LONGEST_HOLD_S = 10.0
_HOLD_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Attempt:
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


@dataclass(frozen=True, slots=True)
class Routed:
    """Where a request goes."""

    worker: TrackedWorker
    record: DecisionRecord
    chosen: Candidate
    lease: lease_pb2.Lease


class Router:
    """Decides over one picture."""

    def __init__(
        self,
        picture: Picture,
        changes: Changes,
        lease_secret: bytes,
        params: CostParams | None = None,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._picture = picture
        self._changes = changes
        self._lease_secret = lease_secret
        self._params = params or CostParams()
        self._digest = self._params.digest()
        self._unix_time = unix_time
        self._random = random.Random()
        self._tracer = trace.get_tracer("penstock.router")

    async def route(
        self, prepared: PreparedRequest, attempt: Attempt
    ) -> tuple[Routed, tracing.Metadata]:
        """Choose a worker; returns it with the metadata that puts the worker's span below this one.

        Raises:
            NoWorker: nobody can take it; the message says why for each worker.
        """
        with self._tracer.start_as_current_span(semconv.SPAN_ROUTE) as span:
            began = self._picture.clock()
            record = self._decide(prepared, attempt)
            while record.decision.waits_for and await self._hold(record.decision, began, attempt):
                record = self._decide(prepared, attempt)
            self._picture.book.add(record)
            _describe(span, record)
            chosen = record.decision.chosen
            if chosen is None:
                raise NoWorker(_nobody(record), retry_after_s=RETRY_AFTER_S)
            worker = next(w for w in prepared.workers if w.worker_id == chosen.worker_id)
            self._reserve(prepared, worker, chosen, attempt)
            lease = self._lease(prepared, record, chosen)
            return Routed(worker, record, chosen, lease), tracing.outgoing()

    def release(self, routed: Routed, *, status: str = "", settle_s: float = 0.0) -> None:
        """The attempt is over. Blocks that it computed may take ``settle_s`` to be reported."""
        request_id = routed.record.request_id
        routed.worker.load.release(request_id)
        if settle_s:
            self._picture.pending.settle(request_id, self._picture.clock() + settle_s)
        else:
            self._picture.pending.cancel(request_id)
        self._picture.book.stream_over(routed.record.decision_id, status)
        self._changes.notify()

    def _decide(self, prepared: PreparedRequest, attempt: Attempt) -> DecisionRecord:
        began, now = time.perf_counter(), self._picture.clock()
        self._picture.pending.expire(now)
        views = []
        for worker in prepared.workers:
            worker.load.expire(now)
            views.append(worker.view(now, prepared.excluded.get(worker.worker_id, "")))
        request = self._look_up(prepared, attempt)
        seed = self._random.getrandbits(64)
        decision = decide(views, request, now, seed, self._params)
        seconds = time.perf_counter() - began
        self._picture.metrics.decided(seconds)
        return DecisionRecord(
            decision_id=new_id("dec"),
            request_id=prepared.request.request_id,
            attempt=attempt.number,
            unix_time_s=self._unix_time(),
            model=prepared.request.model,
            policy_digest=self._digest,
            seed=seed,
            prompt_tokens=prepared.prefix_tokens,
            num_blocks=request.num_blocks,
            decision=decision,
            decision_us=int(seconds * 1e6),
            trace_id=tracing.current_trace_id(),
        )

    def _look_up(self, prepared: PreparedRequest, attempt: Attempt) -> RoutingRequest:
        """What each worker holds and computes of the prompt."""
        groups: dict[tuple[str, int], list[TrackedWorker]] = {}
        for worker in prepared.workers:
            if worker.facts is not None:
                key = (worker.facts.model_revision, worker.facts.block_tokens)
                groups.setdefault(key, []).append(worker)
        matches: dict[str, Match] = {}
        num_blocks, divergent = 0, None
        for (_, block_tokens), members in groups.items():
            facts = members[0].facts
            assert facts is not None
            usable = blocks.reusable_blocks(prepared.prefix_tokens, block_tokens)
            chain = prepared.hashes(facts)[: usable * blocks.HASH_BYTES]
            found = self._match(members, chain, block_tokens)
            matches |= found
            hashes = memoryview(chain).cast("Q")
            if len(hashes) > num_blocks:
                num_blocks = len(hashes)
                divergent = first_divergent(hashes, list(found.values()), block_tokens)
        return RoutingRequest(
            request_id=prepared.request.request_id,
            model=prepared.request.model,
            prompt_tokens=prepared.prefix_tokens,
            num_blocks=num_blocks,
            matches=matches,
            divergent=divergent,
            max_tokens=prepared.max_tokens,
            excluded=attempt.excluded,
        )

    def _match(
        self, members: list[TrackedWorker], chain: bytes, block_tokens: int
    ) -> dict[str, Match]:
        depths = self._picture.index.match(chain).tolist()
        pending = self._picture.pending
        matches: dict[str, Match] = {}
        for worker in members:
            slot, worker_id = worker.sync.slot, worker.worker_id
            depth = depths[slot] if slot is not None else 0
            extent = pending.extent(worker_id, chain, depth)
            if depth or extent.blocks:
                matches[worker_id] = Match(
                    depth * block_tokens,
                    extent.blocks * block_tokens,
                    extent.eta,
                    extent.request_ids,
                )
        return matches

    async def _hold(self, decision: Decision, began: float, attempt: Attempt) -> bool:
        """Wait for blocks under way; false once waiting any longer makes no sense."""
        until = min(began + _LONGEST_HOLD_S, attempt.deadline)
        pending, clock = self._picture.pending, self._picture.clock
        while pending.is_open(decision.waits_for):
            left = until - clock()
            if left <= 0:
                return False
            await self._changes.wait(min(left, _HOLD_POLL_S))
            pending.expire(clock())
        return True

    def _reserve(
        self, prepared: PreparedRequest, worker: TrackedWorker, chosen: Candidate, attempt: Attempt
    ) -> None:
        now, request_id = self._picture.clock(), prepared.request.request_id
        worker.breaker.sent(now)
        worker.load.reserve(request_id, int(chosen.uncached_tokens), now, attempt.ttl_s)
        facts = worker.facts
        assert facts is not None
        work = (prepared.hashes(facts), chosen.matched_tokens // facts.block_tokens)
        times = Times(eta=now + chosen.ttft_s, expires=now + attempt.ttl_s)
        self._picture.pending.add(worker.worker_id, request_id, work, times)

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
            expires_unix_ms=int((self._unix_time() + _LEASE_TTL_S) * 1000),
            cache_salt=prepared.cache_salt,
        )
        if not self._lease_secret:
            # A worker without a secret of its own checks nothing; the claims still carry the salt.
            return lease_pb2.Lease(claims=claims.SerializeToString())
        return leases.sign(claims, self._lease_secret)


def _describe(span: trace.Span, record: DecisionRecord) -> None:
    decision, chosen = record.decision, record.decision.chosen
    tracing.set_attributes(
        span,
        (
            (semconv.REQUEST_ID, record.request_id),
            (semconv.DECISION_ID, record.decision_id),
            (semconv.ATTEMPT, record.attempt),
            (semconv.DECISION_REASON, decision.reason),
            (semconv.DECISION_MARGIN_S, decision.margin_s),
            (semconv.DECISION_CANDIDATES, len(decision.candidates)),
            (semconv.WORKER_ID, record.worker_id or None),
            (semconv.PREDICTED_CACHED_TOKENS, record.predicted_cached_tokens),
            (semconv.PREDICTED_TTFT_S, chosen.ttft_s if chosen else None),
        ),
    )


def _nobody(record: DecisionRecord) -> str:
    why = "; ".join(f"{c.worker_id}: {c.excluded_because}" for c in record.decision.candidates)
    return f"no worker can take a request for {record.model!r} now ({why})"
