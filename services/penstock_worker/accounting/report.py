"""What one request leaves behind in telemetry: phase spans and histogram records, made at its end."""

import time
from dataclasses import dataclass, field

from opentelemetry import trace

from penstock.common.v1 import usage_pb2
from penstock_core.telemetry import semconv as sc
from penstock_core.telemetry.tracing import record_span, set_attributes
from penstock_worker.accounting.metrics import RequestMetrics
from penstock_worker.intake.plan import Plan


@dataclass(slots=True)
class Progress:
    """When a request reached what. Seconds since its arrival; None if it never did."""

    arrived_unix_s: float = field(default_factory=time.time)
    arrived_s: float = field(default_factory=time.perf_counter)
    queue_s: float | None = None
    ttft_s: float | None = None
    cached_tokens: int = 0

    def now_s(self) -> float:
        """Seconds since arrival."""
        return time.perf_counter() - self.arrived_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended. ``error`` is the slug of what went wrong."""

    usage: usage_pb2.Usage
    timing: usage_pb2.Timing
    finish_reasons: tuple[str, ...]
    error: str | None


class Reporter:
    """Records requests that ended, under the span of their RPC."""

    def __init__(self, metrics: RequestMetrics, worker_id: str) -> None:
        self._metrics = metrics
        self._worker_id = worker_id
        self._tracer = trace.get_tracer("penstock.worker")

    def ended(self, plan: Plan, progress: Progress, outcome: Outcome) -> None:
        """Record one request."""
        self._measure(plan, outcome, reached_token=progress.ttft_s is not None)
        span = trace.get_current_span()
        if span.is_recording():
            self._describe(span, plan, progress, outcome)
            self._record_phases(progress, outcome)

    def _measure(self, plan: Plan, outcome: Outcome, *, reached_token: bool) -> None:
        m = self._metrics
        kind = "chat" if plan.request.WhichOneof("prompt") == "chat" else "text_completion"
        common = {
            sc.OPERATION: kind,
            sc.PROVIDER: "penstock",
            sc.REQUEST_MODEL: plan.request.model,
        }
        error = {sc.ERROR_TYPE: outcome.error} if outcome.error else {}
        m.duration.record(outcome.timing.total_s, {**common, **error})
        m.tokens.record(outcome.usage.prompt_tokens, {**common, sc.TOKEN_TYPE: "input"})
        m.tokens.record(outcome.usage.completion_tokens, {**common, sc.TOKEN_TYPE: "output"})
        self._count_drafts(plan.request.model, outcome.usage)
        if reached_token:
            m.ttft.record(outcome.timing.ttft_s, common)
        if outcome.timing.tpot_s:
            m.tpot.record(outcome.timing.tpot_s, common)

    def _count_drafts(self, model: str, usage: usage_pb2.Usage) -> None:
        if not usage.drafted_tokens:
            return
        accepted = usage.accepted_draft_tokens
        outcomes = {"accepted": accepted, "rejected": usage.drafted_tokens - accepted}
        for outcome, count in outcomes.items():
            labels = {sc.REQUEST_MODEL: model, sc.DRAFT_OUTCOME: outcome}
            self._metrics.drafts.add(count, labels)

    def _describe(self, span: trace.Span, plan: Plan, progress: Progress, outcome: Outcome) -> None:
        sampling = plan.engine_request.sampling
        set_attributes(
            span,
            (
                (sc.REQUEST_ID, plan.request_id),
                (sc.WORKER_ID, self._worker_id),
                (sc.DECISION_ID, plan.claims.decision_id or None),
                (sc.REQUEST_MODEL, plan.request.model),
                (sc.ADAPTER, plan.request.adapter or None),
                (sc.MAX_TOKENS, plan.engine_request.max_tokens),
                (sc.TEMPERATURE, sampling.temperature),
                (sc.ATTEMPT, plan.request.resume.attempt),
                (sc.INPUT_TOKENS, outcome.usage.prompt_tokens),
                (sc.OUTPUT_TOKENS, outcome.usage.completion_tokens),
                (sc.CACHED_TOKENS, progress.cached_tokens),
                (sc.FINISH_REASONS, outcome.finish_reasons),
                (sc.TTFT_S, progress.ttft_s),
            ),
        )

    def _record_phases(self, progress: Progress, outcome: Outcome) -> None:
        start, end = progress.arrived_unix_s, progress.arrived_unix_s + outcome.timing.total_s
        queue_end = end if progress.queue_s is None else start + progress.queue_s
        record_span(self._tracer, sc.SPAN_QUEUE, start, queue_end, {sc.QUEUE_S: queue_end - start})
        if progress.queue_s is None:
            return
        prefill_end = end if progress.ttft_s is None else start + progress.ttft_s
        usage = outcome.usage
        record_span(
            self._tracer, sc.SPAN_PREFILL, queue_end, prefill_end,
            {sc.CACHED_TOKENS: progress.cached_tokens, sc.INPUT_TOKENS: usage.prompt_tokens},
        )  # fmt: skip
        if progress.ttft_s is None:
            return
        record_span(
            self._tracer, sc.SPAN_DECODE, prefill_end, end,
            {
                sc.OUTPUT_TOKENS: usage.completion_tokens,
                sc.TPOT_S: outcome.timing.tpot_s,
                sc.DRAFTED_TOKENS: usage.drafted_tokens,
                sc.ACCEPTED_DRAFT_TOKENS: usage.accepted_draft_tokens,
                **_speculation(usage),
            },
        )  # fmt: skip


def _speculation(usage: usage_pb2.Usage) -> dict[str, float]:
    """What drafts gained; nothing where none were made.

    Each step gives a sample a token of its own besides the accepted drafts.
    """
    if not usage.drafted_tokens:
        return {}
    steps = usage.completion_tokens - usage.accepted_draft_tokens
    return {
        sc.ACCEPTANCE_RATE: usage.accepted_draft_tokens / usage.drafted_tokens,
        sc.TOKENS_PER_STEP: usage.completion_tokens / max(steps, 1),
    }
