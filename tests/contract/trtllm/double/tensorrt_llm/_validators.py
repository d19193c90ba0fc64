"""Each validator that the contract lists, under its text there."""

from typing import Any

from tensorrt_llm._contract import Validator


def _need(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _fraction(c: Any) -> None:
    # None is compared like the package does, which is a TypeError there too.
    _need(0 <= c.free_gpu_memory_fraction <= 1, "free_gpu_memory_fraction must be in [0, 1]")


def _windows(c: Any) -> None:
    windows = c.max_attention_window
    _need(windows is None or (windows and all(w > 0 for w in windows)), "max_attention_window")


def _schedule(c: Any) -> None:
    schedule = c.draft_len_schedule
    if schedule is None:
        return
    _need(all(k >= 1 for k in schedule) and all(v >= 0 for v in schedule.values()), "schedule")
    _need(schedule.get(1) == c.max_draft_len, "draft_len_schedule[1] must be max_draft_len")
    _need(max(schedule.values()) <= c.max_draft_len, "draft_len_schedule exceeds max_draft_len")
    _set(c, "draft_len_schedule", dict(sorted(schedule.items())))


def _cuda_graphs(c: Any) -> None:
    if c.batch_sizes and c.max_batch_size == 0:
        _set(c, "max_batch_size", max(c.batch_sizes))
    elif c.batch_sizes:
        _need(max(c.batch_sizes) == c.max_batch_size, "batch_sizes and max_batch_size differ")
    elif c.max_batch_size == 0:
        _set(c, "max_batch_size", 128)


def _total_is_draft(c: Any) -> None:
    _set(c, "max_total_draft_tokens", c.max_draft_len)


def _eagle_layers(c: Any) -> None:
    _set(c, "num_eagle_layers", c.max_draft_len)
    _total_is_draft(c)


def _dynamic_tree(c: Any) -> None:
    _need(not c.use_dynamic_tree or c.dynamic_tree_max_topK, "dynamic_tree_max_topK")


def _lookahead(c: Any) -> None:
    sizes = (c.max_window_size, c.max_ngram_size, c.max_verification_set_size)
    # Defaults that only the C++ side knows are their own names here.
    _need(all(size > 0 for size in sizes if isinstance(size, int)), "sizes must be positive")


def _mtp_length(c: Any) -> None:
    if "num_nextn_predict_layers" in c.model_fields_set:
        _set(c, "max_draft_len", c.num_nextn_predict_layers)
        _set(c, "max_total_draft_tokens", c.num_nextn_predict_layers)


def _set(c: Any, name: str, value: object) -> None:
    c.__dict__[name] = value


def _elsewhere(_c: Any) -> None:
    """What ``LLM`` checks, see ``_llm``, or only logs."""


VALIDATORS: dict[str, Validator] = {
    "free_gpu_memory_fraction must satisfy 0 <= v <= 1 (explicit None would raise TypeError in the comparison)": _fraction,
    "max_gpu_total_bytes >= 0": lambda c: _need(c.max_gpu_total_bytes >= 0, "max_gpu_total_bytes"),
    "max_attention_window: None or non-empty list of positive ints": _windows,
    "max_batch_size >= 0": lambda c: _need(c.max_batch_size >= 0, "max_batch_size"),
    "TorchLlmArgs.validate_cuda_graph_config: neither given -> max_batch_size=128 and sizes generated; batch_sizes given & max_batch_size==0 -> max_batch_size=max(batch_sizes); both given and batch_sizes != generated(max_batch_size) -> ValueError": _cuda_graphs,
    "acceptance_window >= 0": lambda c: _need((c.acceptance_window or 0) >= 0, "acceptance_window"),
    "acceptance_length_threshold >= 0": lambda c: _need(
        (c.acceptance_length_threshold or 0) >= 0, "acceptance_length_threshold"
    ),
    "draft_len_schedule: keys>=1, values>=0, must contain key 1, schedule[1]==max_draft_len, no value > max_draft_len; returned sorted by key": _schedule,
    "max_total_draft_tokens := max_draft_len in __init__": _total_is_draft,
    "max_total_draft_tokens := max_draft_len": _total_is_draft,
    "TorchLlmArgs asserts max_draft_len > 0 and speculative_model is not None": _elsewhere,
    "max_draft_len required (ValueError)": lambda c: _need(c.max_draft_len, "max_draft_len is required"),
    "num_eagle_layers := max_draft_len; max_total_draft_tokens := max_draft_len (linear tree)": _eagle_layers,
    "eagle_choices logs 'Draft token tree is still under development, PLEASE DO NOT USE IT'": _elsewhere,
    "use_dynamic_tree needs dynamic_tree_max_topK>0 and max_total_draft_tokens>0": _dynamic_tree,
    "TorchLlmArgs asserts max_draft_len>0 and speculative_model is not None": _elsewhere,
    "__init__: if num_nextn_predict_layers passed -> max_draft_len and max_total_draft_tokens set to it": _mtp_length,
    "mtp_eagle_one_model=False logs deprecation (2-model MTP does nothing in 1.3)": _elsewhere,
    "TorchLlmArgs asserts num_nextn_predict_layers>0 and sets max_draft_len to it": _elsewhere,
    "TorchLlmArgs asserts max_draft_len>0 and max_matching_ngram_size>0 (defaults fail!)": _elsewhere,
    "all three must be > 0": _lookahead,
    "TorchLlmArgs forces max_batch_size=1, disable_overlap_scheduler=True, cuda_graph_config=None, max_draft_len=1": _elsewhere,
    "speculative_config.supports_backend(backend) else ValueError": _elsewhere,
    "stream_interval > 0": lambda c: _need(c.stream_interval > 0, "stream_interval"),
    "peft_cache_config.lora_prefetch_dir must be None": lambda c: _need(
        c.peft_cache_config is None or c.peft_cache_config.lora_prefetch_dir is None, "prefetch"
    ),
    "unknown kwargs -> ValueError('LLM got invalid argument: <key>')": _elsewhere,
    "batch_wait_timeout_ms >= 0": lambda c: _need(c.batch_wait_timeout_ms >= 0, "batch_wait"),
    "batch_wait_timeout_iters >= 0": lambda c: _need(c.batch_wait_timeout_iters >= 0, "batch_wait"),
    "0 <= batch_wait_max_tokens_ratio <= 1": lambda c: _need(
        0 <= c.batch_wait_max_tokens_ratio <= 1, "batch_wait_max_tokens_ratio"
    ),
    "ray_worker_extension_cls requires orchestrator_type='ray'": lambda c: _need(
        c.ray_worker_extension_cls is None or c.orchestrator_type == "ray", "orchestrator_type"
    ),
}  # fmt: skip
