"""Combinations that TensorRT-LLM 1.2.1 cannot run, or that nobody has tested.

Owns the feature matrix and the known defects as a table: what is refused says why and what to do
instead; what is untested is told once at start. Pure; knows the settings' shape only.

Source: the feature combination matrix of TensorRT-LLM 1.2.1's documentation, and its issues.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock_engine.trtllm.speculation import Eagle3, Mtp

if TYPE_CHECKING:
    from penstock_engine.trtllm.settings import TrtLlmSettings


@dataclass(frozen=True, slots=True)
class Rule:
    """``applies`` to settings that combine what does not go together."""

    applies: Callable[["TrtLlmSettings"], bool]
    reason: str
    instead: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.instead}"


def refusals(settings: "TrtLlmSettings") -> list[str]:
    """Why the engine could not run so, each with an alternative; empty if it can."""
    return [str(rule) for rule in FORBIDDEN if rule.applies(settings)]


def warnings(settings: "TrtLlmSettings") -> list[str]:
    """What is allowed but nobody has tested, or works badly."""
    return [str(rule) for rule in DOUBTFUL if rule.applies(settings)]


def _eagle(s: "TrtLlmSettings") -> Eagle3 | None:
    return s.speculation if isinstance(s.speculation, Eagle3) else None


def _is_one_model_eagle(s: "TrtLlmSettings") -> bool:
    eagle = _eagle(s)
    return eagle is not None and eagle.one_model


def _stops_drafting_under_a_grammar(s: "TrtLlmSettings") -> bool:
    eagle = _eagle(s)
    return s.guided_decoding is not None and eagle is not None and eagle.may_stop_drafting


def _overlaps_two_models(s: "TrtLlmSettings") -> bool:
    return s.is_overlapped and s.drafting is not None and s.drafting.needs_overlap_off


def _has_several_windows(s: "TrtLlmSettings") -> bool:
    return len(set(s.kv_cache.max_attention_window or ())) > 1


FORBIDDEN: tuple[Rule, ...] = (
    Rule(
        lambda s: s.parallel.pipeline > 1 and s.drafting is not None,
        "speculation does not run with pipeline parallelism",
        "set parallel.pipeline to 1 and spread the model by parallel.tensor, or speculation to none",
    ),
    Rule(
        lambda s: s.sampler == "TRTLLMSampler" and s.drafting is not None,
        "speculation does not run with TRTLLMSampler",
        "set sampler to auto",
    ),
    Rule(
        lambda s: s.lora is not None and s.cuda_graphs is not None,
        "LoRA does not run in CUDA graphs",
        "set cuda_graphs to null",
    ),
    Rule(
        _overlaps_two_models,
        "this kind of speculation does not run with the overlap scheduler",
        "leave scheduler.overlap out, or use eagle3 with one_model",
    ),
    Rule(
        _stops_drafting_under_a_grammar,
        "guided decoding with eagle3 crashes where draft_len_schedule reaches 0 "
        "(https://github.com/NVIDIA/TensorRT-LLM/issues/15022)",
        "let the schedule end at 1, or set guided_decoding to null",
    ),
    Rule(
        lambda s: _is_one_model_eagle(s) and s.cuda_graphs is not None and s.cuda_graphs.padding,
        "eagle3 in one model overruns its hidden states in padded CUDA graphs "
        "(https://github.com/NVIDIA/TensorRT-LLM/pull/15708)",
        "set cuda_graphs.padding to false, or one_model to false",
    ),
    Rule(
        lambda s: _has_several_windows(s) and _eagle(s) is not None,
        "eagle3 doubles the KV budget of attention windows of several sizes "
        "(https://github.com/NVIDIA/TensorRT-LLM/pull/12855)",
        "leave kv_cache.max_attention_window out, or use ngram",
    ),
    Rule(
        lambda s: (
            s.kv_cache.host_cache_bytes > 0
            and s.has_events
            and not s.kv_cache.host_offload_with_events
        ),
        "host offload has crashed the engine's event thread "
        "(https://github.com/NVIDIA/TensorRT-LLM/issues/4666)",
        "run tests/gpu with it first and then set kv_cache.host_offload_with_events to true, "
        "or set kv_cache.host_cache_bytes to 0",
    ),
    Rule(
        lambda s: s.kv_cache.host_cache_bytes > 0 and not s.kv_cache.reuse,
        "host offload keeps blocks for reuse, which is off",
        "set kv_cache.reuse to true, or kv_cache.host_cache_bytes to 0",
    ),
    Rule(
        lambda s: s.scheduler.context_chunking is not None and not s.scheduler.chunked_prefill,
        "context_chunking chooses between chunks of prefills, which are off",
        "set scheduler.chunked_prefill to true",
    ),
    Rule(
        lambda s: not s.scheduler.chunked_prefill and (s.max_seq_len or 0) > s.max_num_tokens,
        "without chunked prefill a prompt longer than max_num_tokens is refused by the engine",
        "set scheduler.chunked_prefill to true, or max_num_tokens to at least max_seq_len",
    ),
)

DOUBTFUL: tuple[Rule, ...] = (
    Rule(
        lambda s: s.lora is not None and s.drafting is not None,
        "LoRA with speculation is untested",
        "compare outputs with speculation none",
    ),
    Rule(
        lambda s: s.lora is not None and s.guided_decoding is not None,
        "LoRA with guided decoding is untested",
        "set guided_decoding to null if it is not needed",
    ),
    Rule(
        lambda s: s.lora is not None and (s.parallel.expert or 1) > 1,
        "LoRA with expert parallelism is untested",
        "compare outputs with parallel.expert 1",
    ),
    Rule(
        lambda s: s.lora is not None and s.parallel.attention_dp,
        "LoRA with attention data parallelism is untested",
        "compare outputs with parallel.attention_dp false",
    ),
    Rule(
        lambda s: s.scheduler.chunked_prefill and s.parallel.pipeline > 1,
        "chunked prefill with pipeline parallelism is untested",
        "compare outputs with scheduler.chunked_prefill false",
    ),
    Rule(
        lambda s: (
            isinstance(s.speculation, Mtp)
            and s.speculation.num_layers > 1
            and s.guided_decoding is not None
        ),
        "guided requests reject most drafts of mtp with several layers "
        "(https://github.com/NVIDIA/TensorRT-LLM/issues/7878)",
        "use num_layers 1 where most requests are guided",
    ),
    Rule(
        lambda s: (
            s.drafting is not None
            and s.drafting.has_draft_weights
            and s.gpu_memory_fraction > _SAFE_FRACTION
        ),
        "the KV cache takes so much that warm-up or drafting may run out of memory",
        "start at kv_cache.free_gpu_memory_fraction 0.80 to 0.85",
    ),
    Rule(
        lambda s: s.drafting is not None and s.drafting.ignores_sampling,
        "requests that sample are refused, since one model drafts and draws greedily",
        "set speculation.allow_advanced_sampling to true",
    ),
    Rule(
        lambda s: not s.has_events,
        "without kv_cache.reuse nothing is reused and the router learns of no blocks",
        "set kv_cache.reuse to true",
    ),
)
_SAFE_FRACTION = 0.85
