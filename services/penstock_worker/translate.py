"""Between wire messages and the engine's types: the only place that knows both."""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.common.v1 import sampling_pb2, tokens_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2
from penstock.worker.v1 import state_pb2
from penstock_core.blocks import pack_tokens
from penstock_engine.api import (
    Constraint,
    EmbedRequest,
    EngineInfo,
    EngineRequest,
    EngineState,
    FinishReason,
    Logprob,
    Pooling,
    Priority,
    Sampling,
)
from penstock_text.tokenizer import Tokenizer

FINISH_REASONS: dict[FinishReason, generate_pb2.FinishReason.ValueType] = {
    FinishReason.STOP: generate_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generate_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORTED: generate_pb2.FINISH_REASON_ABORTED,
    FinishReason.CONSTRAINT: generate_pb2.FINISH_REASON_CONSTRAINT,
}
_PRIORITIES = {
    sampling_pb2.PRIORITY_CLASS_UNSPECIFIED: Priority.STANDARD,
    sampling_pb2.PRIORITY_CLASS_SYSTEM: Priority.SYSTEM,
    sampling_pb2.PRIORITY_CLASS_INTERACTIVE: Priority.INTERACTIVE,
    sampling_pb2.PRIORITY_CLASS_STANDARD: Priority.STANDARD,
    sampling_pb2.PRIORITY_CLASS_BATCH: Priority.BATCH,
}
_SPECULATION = {
    sampling_pb2.SPECULATION_MODE_ON: True,
    sampling_pb2.SPECULATION_MODE_OFF: False,
}
_POOLINGS = {
    inference_service_pb2.POOLING_LAST: Pooling.LAST,
    inference_service_pb2.POOLING_MEAN: Pooling.MEAN,
}


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a request leaves open, decided: see ``EngineRequest`` for the fields."""

    request_id: str
    prompt: Sequence[int]
    max_tokens: int
    seed: int
    num_drawn: int
    chain_start: int
    priority: sampling_pb2.PriorityClass.ValueType
    eos_token_ids: frozenset[int]
    emitted: Sequence[Sequence[int]]


def engine_request(request: generate_pb2.GenerateRequest, resolved: Resolved) -> EngineRequest:
    """What the engine is asked for."""
    stops = frozenset(request.stop.token_ids)
    if not request.sampling.ignore_eos:
        stops |= resolved.eos_token_ids
    logprobs = request.output.logprobs if request.output.HasField("logprobs") else None
    if logprobs is None and resolved.num_drawn > (request.sampling.n or 1):
        logprobs = 0  # best_of ranks by the tokens' own
    return EngineRequest(
        request_id=resolved.request_id,
        prompt=resolved.prompt,
        max_tokens=resolved.max_tokens,
        sampling=_sampling(request.sampling, resolved.seed),
        stop_token_ids=stops,
        min_tokens=request.stop.min_tokens,
        n=resolved.num_drawn,
        logprobs=logprobs,
        priority=_PRIORITIES.get(resolved.priority, Priority.STANDARD),
        chain_start=resolved.chain_start,
        adapter=request.adapter,
        constraint=_constraint(request.constraint),
        speculation=_SPECULATION.get(request.speculation),
        emitted=resolved.emitted,
    )


def embed_request(
    request: inference_service_pb2.EmbedRequest,
    request_id: str,
    texts: Sequence[Sequence[int]],
    leased: sampling_pb2.PriorityClass.ValueType,
) -> EmbedRequest:
    """What the engine is asked to embed; a lease's priority class goes before the request's."""
    return EmbedRequest(
        request_id=request_id,
        texts=texts,
        pooling=_POOLINGS.get(request.pooling),
        dimensions=request.dimensions if request.HasField("dimensions") else None,
        priority=_PRIORITIES.get(leased or request.priority, Priority.STANDARD),
    )


def _sampling(wire: sampling_pb2.SamplingParams, seed: int) -> Sampling:
    given = {
        name: getattr(wire, name)
        for name in (
            "temperature", "top_p", "top_k", "min_p",
            "frequency_penalty", "presence_penalty", "repetition_penalty",
        )
        if wire.HasField(name)
    }  # fmt: skip
    return Sampling(**given, seed=seed, logit_bias=dict(wire.logit_bias))


def _constraint(wire: sampling_pb2.Constraint) -> Constraint | None:
    match wire.WhichOneof("kind"):
        case "json_schema":
            return Constraint("json_schema", wire.json_schema)
        case "json_object":
            return Constraint("json_object")
        case "regex":
            return Constraint("regex", wire.regex)
        case "grammar":
            return Constraint("grammar", wire.grammar)
        case "choice":
            return Constraint("choice", options=tuple(wire.choice.options))
        case None:
            return None


def logprob(value: Logprob, tokenizer: Tokenizer) -> tokens_pb2.TokenLogprob:
    """A token's log-probability with the bytes of each token in it."""
    return tokens_pb2.TokenLogprob(
        token_id=value.token_id,
        logprob=value.logprob,
        token_bytes=tokenizer.token_bytes(value.token_id),
        top=[
            tokens_pb2.TopLogprob(
                token_id=token, logprob=other, token_bytes=tokenizer.token_bytes(token)
            )
            for token, other in value.top
        ],
    )


def token_ids(ids: Sequence[int]) -> tokens_pb2.TokenIds:
    """Token ids as they travel."""
    return tokens_pb2.TokenIds(ids=pack_tokens(ids))


# Load is told about ten times a second.
MAX_TOLD_ADAPTERS = 256


def load(
    state: EngineState, capacity_blocks: int, health: state_pb2.WorkerHealth.ValueType
) -> state_pb2.WorkerLoad:
    """What the engine does, as routers see it."""
    return state_pb2.WorkerLoad(
        running=state.running,
        waiting=state.waiting,
        queued_prefill_tokens=state.queued_prefill_tokens,
        queued_batch_tokens=state.queued_batch_tokens,
        context_tokens=state.context_tokens,
        used_blocks=state.used_blocks,
        cached_blocks=state.cached_blocks,
        capacity_blocks=capacity_blocks,
        step_s=state.step_s,
        tokens_per_step=state.tokens_per_step,
        prefill_tokens_per_s=state.prefill_tokens_per_s,
        health=health,
        preemptions=state.preemptions,
        figures_age_s=state.figures_age_s,
        cache_losses=state.cache_losses,
        loaded_adapters=state.adapters[:MAX_TOLD_ADAPTERS],
        adapter_load_s=state.adapter_load_s,
    )


def describe_engine(info: EngineInfo) -> state_pb2.WorkerInfo:
    """The part of a worker's description that its engine knows."""
    return state_pb2.WorkerInfo(
        model_revision=info.model_revision,
        engine=info.engine,
        device=info.device,
        block_tokens=info.block_tokens,
        capacity_blocks=info.capacity_blocks,
        max_context_tokens=info.max_context_tokens,
        max_batch=info.max_batch,
        vocab_size=info.vocab_size,
        adapters=info.adapters,
        speculation=info.speculation,
        stores_per_chunk=info.stores_per_chunk,
        embedding_dimensions=info.embedding_dimensions,
        max_embed_tokens=info.max_embed_tokens,
    )
