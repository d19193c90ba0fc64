"""From our settings to the arguments of ``tensorrt_llm.LLM``. Pure.

Owns every name that TensorRT-LLM 1.2.1 gives to a setting. Nested configurations are ``Build``s,
which ``package`` turns into the package's objects: its speculative configurations form a union
without a discriminator, so a dict would be read as the wrong kind. Fields that are not needed are
left out, since the package warns of every unstable one that is set.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from penstock_engine.trtllm.checkpoint import Checkpoint, context
from penstock_engine.trtllm.settings import CudaGraphs, KvCache, Lora, TrtLlmSettings
from penstock_engine.trtllm.speculation import (
    AnySpeculation,
    Auto,
    DraftTarget,
    Eagle3,
    Mtp,
    NGram,
    NoSpeculation,
    Speculation,
)


@dataclass(frozen=True, slots=True)
class Build:
    """An object of the package that is made late: its class and keyword arguments."""

    name: str
    arguments: Mapping[str, object]


def llm_arguments(settings: TrtLlmSettings, checkpoint: Checkpoint) -> dict[str, object]:
    """Keyword arguments of ``LLM``."""
    arguments: dict[str, object] = {
        "model": str(checkpoint.path),
        # Only a grammar needs text; everything else is token ids in and out.
        "skip_tokenizer_init": settings.guided_decoding is None,
        "trust_remote_code": False,
        "dtype": settings.dtype,
        "tensor_parallel_size": settings.parallel.tensor,
        "pipeline_parallel_size": settings.parallel.pipeline,
        "kv_cache_config": _kv_cache(settings.kv_cache, settings),
        "enable_chunked_prefill": settings.scheduler.chunked_prefill,
        "cuda_graph_config": _cuda_graphs(settings.cuda_graphs),
        "max_batch_size": settings.max_batch_size,
        "max_num_tokens": settings.max_num_tokens,
        "max_seq_len": context(settings, checkpoint),
        "disable_overlap_scheduler": not settings.is_overlapped,
        "enable_iter_perf_stats": True,
        "return_perf_metrics": True,
    }
    return arguments | _optional(settings)


def _optional(settings: TrtLlmSettings) -> dict[str, object]:
    """Arguments that are only given where they differ from the package's defaults."""
    parallel, scheduler, lora = settings.parallel, settings.scheduler, settings.lora
    policy: dict[str, object] = {"capacity_scheduler_policy": scheduler.capacity}
    if scheduler.context_chunking is not None:
        policy["context_chunking_policy"] = scheduler.context_chunking
    is_default_policy = policy == {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"}
    given: dict[str, object | None] = {
        "moe_expert_parallel_size": parallel.expert,
        "enable_attention_dp": parallel.attention_dp or None,
        "gpus_per_node": parallel.gpus_per_node,
        "scheduler_config": None if is_default_policy else Build("SchedulerConfig", policy),
        "guided_decoding_backend": settings.guided_decoding,
        "speculative_config": speculative_config(settings.speculation),
        "sampler_type": None if settings.sampler == "auto" else settings.sampler,
        "enable_lora": True if lora else None,
        "lora_config": _lora(lora) if lora else None,
        "otlp_traces_endpoint": settings.otlp_traces_endpoint,
    }
    return {name: value for name, value in given.items() if value is not None}


def _kv_cache(kv: KvCache, settings: TrtLlmSettings) -> Build:
    arguments: dict[str, object] = {
        "enable_block_reuse": kv.reuse,
        "tokens_per_block": kv.tokens_per_block,
        "free_gpu_memory_fraction": settings.gpu_memory_fraction,
        "dtype": kv.dtype,
        "enable_partial_reuse": kv.partial_reuse,
        "event_buffer_max_size": kv.event_buffer if settings.has_events else 0,
    }
    if kv.max_tokens is not None:
        arguments["max_tokens"] = kv.max_tokens
    if kv.host_cache_bytes:
        arguments["host_cache_size"] = kv.host_cache_bytes
    if kv.max_attention_window is not None:
        arguments["max_attention_window"] = list(kv.max_attention_window)
    return Build("KvCacheConfig", arguments)


def _cuda_graphs(graphs: CudaGraphs | None) -> Build | None:
    if graphs is None:
        return None  # which turns them off
    arguments: dict[str, object] = {"enable_padding": graphs.padding}
    if graphs.batch_sizes is not None:
        arguments["batch_sizes"] = list(graphs.batch_sizes)
    if graphs.max_batch_size:
        arguments["max_batch_size"] = graphs.max_batch_size
    return Build("CudaGraphConfig", arguments)


def _lora(lora: Lora) -> Build:
    arguments: dict[str, object] = {
        "lora_dir": [str(adapter.path) for adapter in lora.adapters],
        "max_lora_rank": lora.max_rank,
        "max_loras": lora.max_on_gpu,
        "max_cpu_loras": lora.max_on_host,
    }
    if lora.target_modules:
        arguments["lora_target_modules"] = list(lora.target_modules)
    return Build("LoraConfig", arguments)


def speculative_config(kind: AnySpeculation) -> Build | None:
    """The configuration of a kind of speculation; None for none."""
    match kind:
        case NoSpeculation():
            return None
        case NGram():
            return Build("NGramDecodingConfig", _drafts(kind) | _ngram(kind))
        case DraftTarget():
            drafter = {"speculative_model": kind.draft_model}
            return Build("DraftTargetDecodingConfig", _drafts(kind) | drafter)
        case Eagle3():
            return Build("EagleDecodingConfig", _drafts(kind) | _eagle(kind))
        case Mtp():
            layers = {
                "num_nextn_predict_layers": kind.num_layers,
                "allow_advanced_sampling": kind.allow_advanced_sampling,
            }
            return Build("MTPDecodingConfig", _shared(kind) | layers)
        case Auto():
            return Build("AutoDecodingConfig", {})


def _shared(kind: Speculation) -> dict[str, object]:
    given = {
        "max_concurrency": kind.max_concurrency,
        "acceptance_window": kind.acceptance_window,
        "acceptance_length_threshold": kind.acceptance_length_threshold,
    }
    return {name: value for name, value in given.items() if value is not None}


def _drafts(kind: NGram | DraftTarget | Eagle3) -> dict[str, object]:
    arguments = {"max_draft_len": kind.max_draft_tokens, **_shared(kind)}
    if kind.draft_len_schedule is not None:
        arguments["draft_len_schedule"] = dict(sorted(kind.draft_len_schedule.items()))
    return arguments


def _ngram(kind: NGram) -> dict[str, object]:
    return {
        "max_matching_ngram_size": kind.max_ngram,  # the package's own default, 0, is refused
        "is_keep_all": kind.keep_all,
        "is_use_oldest": kind.use_oldest,
        "is_public_pool": kind.public_pool,
    }


def _eagle(kind: Eagle3) -> dict[str, object]:
    arguments: dict[str, object] = {
        "speculative_model": kind.draft_model,
        "eagle3_one_model": kind.one_model,
        "eagle3_model_arch": kind.architecture,
    }
    if kind.one_model:
        arguments["allow_advanced_sampling"] = kind.allow_advanced_sampling
    if kind.layers_to_capture is not None:
        arguments["eagle3_layers_to_capture"] = set(kind.layers_to_capture)
    return arguments
