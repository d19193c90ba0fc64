"""Every span, attribute and metric name in one place.

``gen_ai.*`` names and buckets follow OpenTelemetry's GenAI semantic conventions (still
"development": https://github.com/open-telemetry/semantic-conventions-genai), ``rpc.*`` the RPC
conventions' release candidate; ``penstock.*`` is ours. Low cardinality only, never a prompt.
"""

from typing import Final

# Attributes.
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
MAX_TOKENS: Final = "gen_ai.request.max_tokens"
TEMPERATURE: Final = "gen_ai.request.temperature"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
TOKEN_TYPE: Final = "gen_ai.token.type"
ERROR_TYPE: Final = "error.type"
RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.status_code"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
URL_SCHEME: Final = "url.scheme"
REQUEST_ID: Final = "penstock.request.id"
WORKER_ID: Final = "penstock.worker.id"
DECISION_ID: Final = "penstock.decision.id"
DECISION_REASON: Final = "penstock.decision.reason"
DECISION_MARGIN_S: Final = "penstock.decision.margin_s"
DECISION_CANDIDATES: Final = "penstock.decision.candidates"
CANDIDATE_COSTS_S: Final = "penstock.decision.costs_s"
CANDIDATE_TTFTS_S: Final = "penstock.decision.ttfts_s"
CANDIDATE_CACHED_TOKENS: Final = "penstock.decision.cached_tokens"
CANDIDATE_REFUSALS: Final = "penstock.decision.refusals"
DECISION_QUEUE_S: Final = "penstock.decision.queue_s"
PREDICTED_CACHED_TOKENS: Final = "penstock.predicted_cached_tokens"
PREDICTED_TTFT_S: Final = "penstock.predicted_ttft_s"
ADAPTER: Final = "penstock.adapter"
ATTEMPT: Final = "penstock.attempt"
QUEUE_S: Final = "penstock.queue_s"
TTFT_S: Final = "penstock.ttft_s"
TPOT_S: Final = "penstock.tpot_s"
DRAFT_OUTCOME: Final = "penstock.draft.outcome"
DRAFTED_TOKENS: Final = "penstock.drafted_tokens"
ACCEPTED_DRAFT_TOKENS: Final = "penstock.accepted_draft_tokens"
ACCEPTANCE_RATE: Final = "penstock.draft.acceptance_rate"
TOKENS_PER_STEP: Final = "penstock.tokens_per_step"
BATCH_ID: Final = "penstock.batch.id"
BATCH_SHARD: Final = "penstock.batch.shard"
BATCH_LINES: Final = "penstock.batch.lines"
STATUS: Final = "penstock.status"
SYNC_STATE: Final = "penstock.sync_state"
RESPONSE_CACHE: Final = "penstock.response_cache"
PRIORITY: Final = "penstock.priority"
SHADOW_AGREES: Final = "penstock.shadow.agrees"
TENANT: Final = "penstock.tenant"
CURRENCY: Final = "penstock.currency"
PHASE: Final = "penstock.phase"
PERIOD: Final = "penstock.period"

# Spans (the request's tree; RPC spans are named after their method).
SPAN_TOKENIZE: Final = "penstock.tokenize"
SPAN_ROUTE: Final = "penstock.route"
SPAN_FORWARD: Final = "penstock.forward"
SPAN_QUEUE: Final = "penstock.queue"
SPAN_PREFILL: Final = "penstock.prefill"
SPAN_DECODE: Final = "penstock.decode"
SPAN_SUBMIT: Final = "penstock.batch.submit"
SPAN_SHARD: Final = "penstock.batch.shard"

# Metrics.
REQUEST_DURATION: Final = "gen_ai.server.request.duration"
TTFT: Final = "gen_ai.server.time_to_first_token"
TPOT: Final = "gen_ai.server.time_per_output_token"
TOKEN_USAGE: Final = "gen_ai.client.token.usage"
RPC_DURATION: Final = "rpc.server.call.duration"
DEFERRED: Final = "penstock.telemetry.deferred"
HTTP_DURATION: Final = "http.server.request.duration"
DECISION_DURATION: Final = "penstock.router.decision.duration"
PREDICTED_HITS: Final = "penstock.router.predicted_cached_tokens"
ACTUAL_HITS: Final = "penstock.router.actual_cached_tokens"
RETRIES: Final = "penstock.router.retries"
RESUMES: Final = "penstock.router.resumes"
DIVERGENCES: Final = "penstock.router.index_divergences"
WORKERS: Final = "penstock.router.workers"
INDEX_BLOCKS: Final = "penstock.router.index_blocks"
QUEUED: Final = "penstock.router.queued"
QUEUE_DURATION: Final = "penstock.router.queue.duration"
REFUSALS: Final = "penstock.router.refusals"
TTFT_ERROR: Final = "penstock.router.ttft_error"
HIT_TRUST: Final = "penstock.router.hit_trust"
SHADOW_DECISIONS: Final = "penstock.router.shadow_decisions"
ENGINE_RUNNING: Final = "penstock.engine.running"
ENGINE_WAITING: Final = "penstock.engine.waiting"
ENGINE_USED_BLOCKS: Final = "penstock.engine.used_blocks"
ENGINE_CACHED_BLOCKS: Final = "penstock.engine.cached_blocks"
ENGINE_CAPACITY_BLOCKS: Final = "penstock.engine.capacity_blocks"
ENGINE_STEP: Final = "penstock.engine.step"
ENGINE_TOKENS_PER_STEP: Final = "penstock.engine.tokens_per_step"
ENGINE_DRAFT_TOKENS: Final = "penstock.engine.draft_tokens"
ENGINE_PREEMPTIONS: Final = "penstock.engine.preemptions"
ENGINE_CACHE_LOSSES: Final = "penstock.engine.cache_losses"
ENGINE_BUSY: Final = "penstock.engine.busy"
COST_TIME: Final = "penstock.cost.worker_time"
COST_AMOUNT: Final = "penstock.cost.amount"
COST_TOKENS: Final = "penstock.cost.tokens"
BUDGET_SPENT: Final = "penstock.router.budget_spent"
QUOTAS_ALONE: Final = "penstock.router.quotas_alone"
BUDGET_REFUSALS: Final = "penstock.router.budget_refusals"
ENGINE_FIGURES_AGE: Final = "penstock.engine.figures_age"
RESPONSE_CACHE_LOOKUPS: Final = "penstock.worker.response_cache.lookups"
RESPONSE_CACHE_BYTES: Final = "penstock.worker.response_cache.bytes"
RESPONSE_CACHE_ENTRIES: Final = "penstock.worker.response_cache.entries"
BATCH_LINES_DONE: Final = "penstock.batch.lines_done"
BATCH_SHARD_DURATION: Final = "penstock.batch.shard.duration"
BATCH_OPEN: Final = "penstock.batch.open"

# Bucket boundaries in seconds. TPOT starts finer than the convention's 10 ms, which cannot tell
# small models and speculative decoding apart.
DURATION_BUCKETS: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
TTFT_BUCKETS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
TPOT_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5,
)  # fmt: skip
RPC_BUCKETS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
DECISION_BUCKETS: Final = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1,
)  # fmt: skip
TOKEN_BUCKETS: Final = (
    1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
)  # fmt: skip

BUCKETS: Final[dict[str, tuple[float, ...]]] = {
    REQUEST_DURATION: DURATION_BUCKETS,
    TTFT: TTFT_BUCKETS,
    TPOT: TPOT_BUCKETS,
    TOKEN_USAGE: TOKEN_BUCKETS,
    RPC_DURATION: RPC_BUCKETS,
    HTTP_DURATION: RPC_BUCKETS,
    DECISION_DURATION: DECISION_BUCKETS,
    QUEUE_DURATION: TTFT_BUCKETS,
    BATCH_SHARD_DURATION: DURATION_BUCKETS,
}
