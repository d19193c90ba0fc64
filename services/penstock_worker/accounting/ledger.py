"""Writes a request's life into the state feed's load ledger, for routers to learn from."""

from collections.abc import Callable

from penstock.common.v1 import usage_pb2
from penstock.worker.v1 import state_pb2
from penstock_engine.api import Admitted
from penstock_worker.accounting.report import Progress
from penstock_worker.intake.plan import Plan


class Ledger:
    """Notes admissions, first tokens and ends. A request that was never admitted leaves no line."""

    def __init__(self, note: Callable[[state_pb2.LedgerEvent], None]) -> None:
        self._note = note
        self._admitted: set[str] = set()

    def admitted(self, plan: Plan, admitted: Admitted) -> None:
        """It holds KV pages, and its prefix was looked up."""
        self._admitted.add(plan.request_id)
        event = state_pb2.Admitted(
            request_id=plan.request_id,
            prompt_tokens=len(plan.engine_request.prompt),
            cached_tokens=admitted.cached_tokens,
            priority=plan.claims.priority or plan.request.priority,
        )
        self._note(state_pb2.LedgerEvent(admitted=event))

    def prefill_done(self, plan: Plan, progress: Progress) -> None:
        """Its first token is there."""
        if plan.request_id not in self._admitted:
            return
        queue_s, ttft_s = progress.queue_s or 0.0, progress.ttft_s or 0.0
        event = state_pb2.PrefillDone(
            request_id=plan.request_id,
            cached_tokens=progress.cached_tokens,
            computed_tokens=len(plan.engine_request.prompt) - progress.cached_tokens,
            queue_s=queue_s,
            prefill_s=ttft_s - queue_s,
            ttft_s=ttft_s,
        )
        self._note(state_pb2.LedgerEvent(prefill_done=event))

    def finished(
        self, plan: Plan, output_tokens: int, usage: usage_pb2.Usage, *, aborted: bool
    ) -> None:
        """It ended, one way or another."""
        if plan.request_id not in self._admitted:
            return
        self._admitted.discard(plan.request_id)
        event = state_pb2.RequestFinished(
            request_id=plan.request_id,
            output_tokens=output_tokens,
            drafted_tokens=usage.drafted_tokens,
            accepted_draft_tokens=usage.accepted_draft_tokens,
            aborted=aborted,
        )
        self._note(state_pb2.LedgerEvent(finished=event))
