"""``RoutingService``: lookaside routing, the fleet's state, decisions and their explanations."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

from penstock.common.v1 import tokens_pb2
from penstock.routing.v1 import routing_service_pb2 as pb
from penstock.routing.v1 import routing_service_pb2_grpc
from penstock_core import logs
from penstock_core.bounds import check_excluded
from penstock_core.errors import InvalidRequest, NotFound, NoWorker
from penstock_core.ids import MAX_ID_LENGTH, new_id
from penstock_core.interceptors import principal
from penstock_core.quotas import check_model
from penstock_router import translate
from penstock_router.costs import CostReports
from penstock_router.decisions import DecisionBook, DecisionRecord
from penstock_router.fleet import Fleet
from penstock_router.load import RESERVATION_TTL_S
from penstock_router.prompts import PreparedRequest, Preparer
from penstock_router.routing import LEASE_TTL_S, Attempt, Routed, Router
from penstock_router.servicer import asked_names, time_left

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_WATCH_EVERY_S = 1.0
_WATCH_LEAST_S = 0.1
_OUTCOME_WAIT_S = 1.0
_NO_DEADLINE_S = 1e9


class RouterRouting(routing_service_pb2_grpc.RoutingServiceServicer):
    """What the router knows and decides."""

    def __init__(
        self,
        preparer: Preparer,
        router: Router,
        fleet: Fleet,
        book: DecisionBook,
        reports: CostReports,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._preparer = preparer
        self._router = router
        self._fleet = fleet
        self._book = book
        self._clock = clock
        self._reports = reports
        self._closed = False

    def close(self) -> None:
        """End the watch streams, which would otherwise last as long as their clients wish."""
        self._closed = True
        self._fleet.changes.notify()

    async def Route(  # noqa: N802 - gRPC's name
        self, request: pb.RouteRequest, context: _Context
    ) -> pb.RouteResponse:
        """Choose a worker for a client that streams from it directly."""
        wanted = request.request
        check_excluded(len(request.excluded_worker_ids))
        tried = frozenset(request.excluded_worker_ids)
        caller, quotas = principal.get(), self._router.picture.quotas
        self._reports.budgets.check(caller.tenant, has_begun=bool(wanted.resume.choices))
        check_model(caller, *asked_names(wanted))
        prepared = await self._preparer.prepare(wanted, caller, tried)
        logs.request_id.set(wanted.request_id)
        left = time_left(context)
        attempt = Attempt(
            number=wanted.resume.attempt,
            excluded=tried,
            ttl_s=RESERVATION_TTL_S,
            deadline=self._clock() + (_NO_DEADLINE_S if left is None else left),
        )
        await quotas.admit(caller, wanted.request_id, prepared.prefix_tokens, LEASE_TTL_S)
        try:
            prepared, routed = await self._routed(prepared, attempt, tried)
        except BaseException:
            quotas.finish(wanted.request_id)
            raise
        wanted = prepared.request
        facts = routed.worker.facts
        return pb.RouteResponse(
            worker_id=routed.chosen.worker_id,
            endpoint=facts.endpoint if facts else routed.worker.endpoint,
            lease=routed.lease,
            prompt_tokens=tokens_pb2.TokenIds(ids=prepared.prompt),
            decision_id=routed.record.decision_id,
            resume_token=wanted.resume.resume_token or new_id("resume"),
            predicted_cached_tokens=routed.record.predicted_cached_tokens,
            predicted_ttft_s=routed.chosen.ttft_s,
            request_id=wanted.request_id,
            model=wanted.model,
            model_revision=facts.model_revision if facts else "",
        )

    async def _routed(
        self, prepared: PreparedRequest, attempt: Attempt, tried: frozenset[str]
    ) -> tuple[PreparedRequest, Routed]:
        try:
            routed, _ = await self._router.route(prepared, attempt)
        except NoWorker:
            if not prepared.asked:
                raise
            # Its place has lost its workers just now: another may do.
            prepared = await self._preparer.elsewhere(prepared, tried)
            routed, _ = await self._router.route(prepared, attempt)
        return prepared, routed

    async def ListWorkers(  # noqa: N802
        self, request: pb.ListWorkersRequest, context: _Context
    ) -> pb.ListWorkersResponse:
        """The workers, with their state."""
        return pb.ListWorkersResponse(workers=self._statuses(request.model))

    async def WatchFleet(  # noqa: N802
        self, request: pb.WatchFleetRequest, context: _Context
    ) -> AsyncIterator[pb.WatchFleetResponse]:
        """The fleet's state at once, then at each change and at least each second."""
        while not self._closed:
            yield pb.WatchFleetResponse(workers=self._statuses())
            # Changes come by the hundred a second; people and dashboards need ten.
            await asyncio.sleep(_WATCH_LEAST_S)
            await self._fleet.changes.wait(_WATCH_EVERY_S - _WATCH_LEAST_S)

    async def ExplainDecision(  # noqa: N802
        self, request: pb.ExplainDecisionRequest, context: _Context
    ) -> pb.ExplainDecisionResponse:
        """A decision and what came of it."""
        if request.WhichOneof("key") is None:
            raise InvalidRequest("a decision or a request must be named", field="key")
        record = self._book.find(request.decision_id, request.request_id)
        if record is None or not _may_see(record.tenant):
            # Another tenant's decision is none that exists.
            wanted = request.decision_id or request.request_id
            raise NotFound(f"{wanted[:MAX_ID_LENGTH]!r} is unknown here, or too long ago")
        outcome = await self._book.outcome(record.decision_id, _OUTCOME_WAIT_S)
        return pb.ExplainDecisionResponse(
            decision=translate.decision_message(record),
            outcome=translate.outcome_message(outcome) if outcome else None,
        )

    async def WatchDecisions(  # noqa: N802
        self, request: pb.WatchDecisionsRequest, context: _Context
    ) -> AsyncIterator[pb.WatchDecisionsResponse]:
        """The caller's decisions and outcomes as they happen; the platform's own sees all."""
        with self._book.watch() as entries:
            while not self._closed:
                try:
                    async with asyncio.timeout(_WATCH_EVERY_S):
                        entry = await entries.get()
                except TimeoutError:
                    continue
                if not _may_see(entry.tenant):
                    continue
                if isinstance(entry, DecisionRecord):
                    yield pb.WatchDecisionsResponse(decision=translate.decision_message(entry))
                else:
                    yield pb.WatchDecisionsResponse(outcome=translate.outcome_message(entry))

    async def ListCosts(  # noqa: N802
        self, request: pb.ListCostsRequest, context: _Context
    ) -> pb.ListCostsResponse:
        """What tenants took of workers."""
        return await self._reports.report(request, principal.get())

    def _statuses(self, model: str = "") -> list[pb.WorkerStatus]:
        now = self._clock()
        return [
            translate.worker_status(worker, now)
            for worker in self._fleet.workers()
            if not model or (worker.facts is not None and model in worker.facts.models)
        ]


def _may_see(tenant: str) -> bool:
    caller = principal.get()
    return caller.is_service or caller.tenant == tenant
