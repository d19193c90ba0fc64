"""From settings to a runner: reads the checkpoint and allocates the KV cache.

Owns the refusals before anything is loaded and the account of what the weights take.
"""

import logging
from dataclasses import dataclass, replace

from penstock_core.errors import InvalidRequest, NotSupported
from penstock_engine.api import EngineInfo
from penstock_engine.native.batching import BatchShape
from penstock_engine.native.compute import Compute, choose
from penstock_engine.native.fused.decoder import FusedDecoder, FusedOptions
from penstock_engine.native.kv_tensors import KvShape, KvTensors
from penstock_engine.native.layers import RopeTable
from penstock_engine.native.masks import Masks
from penstock_engine.native.models import read_config, read_eos
from penstock_engine.native.models.config import ModelConfig
from penstock_engine.native.models.decoder import Decoder
from penstock_engine.native.revision import model_revision
from penstock_engine.native.runner import EagerDecoder, Runner
from penstock_engine.native.settings import NativeSettings
from penstock_engine.native.step_loop import Machine
from penstock_engine.native.weights import Checkpoint, WeightSource, load_weights, shard_paths
from penstock_engine.speculative.draft import DraftLimits, DraftModel
from penstock_engine.speculative.pairing import check_pair
from penstock_engine.speculative.speculator import Speculator

logger = logging.getLogger(__name__)

_SPECULATION = ("none", "ngram", "draft", "auto")
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Everything decided about an engine before its weights are read; ``draft`` if a model drafts."""

    settings: NativeSettings
    config: ModelConfig
    compute: Compute
    kv: KvShape
    info: EngineInfo
    draft: "Blueprint | None" = None


def draw_up(settings: NativeSettings) -> Blueprint:
    """Decide what computes, the context and the number of pages.

    Raises:
        InvalidRequest: the directory or a setting is no good.
        NotSupported: the checkpoint asks for something this engine does not compute.
    """
    config = read_config(settings.model)
    shard_paths(settings.model)
    compute = choose(settings, config)
    kv = KvShape.of(config, settings.block_tokens, compute.dtype.itemsize)
    draft = _draft(settings, config)
    page_bytes = kv.page_bytes + (draft.kv.page_bytes if draft is not None else 0)
    num_pages = settings.kv_blocks or settings.kv_memory_bytes // page_bytes
    if num_pages < 1:
        raise InvalidRequest(
            f"kv_memory_bytes {settings.kv_memory_bytes} holds no page of {page_bytes} bytes",
            field="kv_memory_bytes",
        )
    info = EngineInfo(
        engine="native",
        model_revision=model_revision(settings.model),
        device=str(compute),
        block_tokens=settings.block_tokens,
        capacity_blocks=num_pages,
        max_context_tokens=_context(settings, config),
        max_batch=settings.max_batch,
        vocab_size=config.vocab_size,
        eos_token_ids=read_eos(settings.model),
        speculation=_kinds(settings, draft),
    )
    return Blueprint(settings, config, compute, kv, info, draft)


def load_machine(plan: Blueprint, masks: Masks) -> Machine:
    """A runner, and what drafts for it. Raises InvalidRequest as ``load_runner`` does."""
    runner, settings = load_runner(plan, masks), plan.settings
    if settings.speculation == "none":
        return Machine(runner.run)
    model = None
    if plan.draft is not None:
        # As many pages as the model has: any sequence that runs can be followed.
        pages = plan.info.capacity_blocks
        draft = replace(plan.draft, info=replace(plan.draft.info, capacity_blocks=pages))
        limits = DraftLimits(draft.info.max_context_tokens, pages, draft.kv.block_tokens)
        model = DraftModel(load_runner(draft), limits)
    looks_up = settings.speculation != "draft"
    return Machine(runner.run, Speculator(settings.max_draft_tokens, model, looks_up=looks_up))


def load_runner(plan: Blueprint, masks: Masks | None = None) -> Runner:
    """Read the weights and allocate the pages. Raises InvalidRequest if they do not fit the config."""
    model, compute = plan.settings.model, plan.compute
    kv = KvTensors(plan.kv, plan.info.capacity_blocks, compute.dtype, compute.device)
    with Checkpoint(model, compute.dtype, compute.device) as checkpoint:
        source = WeightSource(checkpoint, plan.config)
        decoder = _fused(plan, source, kv) if compute.library else _eager(plan, source, kv)
    stored = sum(path.stat().st_size for path in shard_paths(model))
    logger.info(
        "%s computes on %s with %d threads: weights take %.1f MiB (%.1f MiB in the checkpoint), "
        "the KV cache %.1f MiB",
        model.name,
        compute,
        compute.threads,
        decoder.weight_bytes / _MIB,
        stored / _MIB,
        plan.info.capacity_blocks * plan.kv.page_bytes / _MIB,
    )
    return Runner(decoder, kv, masks)


def _draft(settings: NativeSettings, config: ModelConfig) -> Blueprint | None:
    """The draft model's, decided as the model's own but for its directory."""
    kind, path = settings.speculation, settings.draft_model
    if kind not in _SPECULATION:
        raise InvalidRequest(
            f"speculation {kind!r} is unknown ({', '.join(_SPECULATION)} are known)",
            field="speculation",
        )
    if settings.max_draft_tokens < 1:
        raise InvalidRequest("max_draft_tokens must be at least 1", field="max_draft_tokens")
    if kind == "draft" and path is None:
        raise InvalidRequest("speculation draft needs a draft_model", field="draft_model")
    if path is None or kind not in {"draft", "auto"}:
        return None
    draft = draw_up(replace(settings, model=path, draft_model=None, speculation="none"))
    check_pair(settings.model, path, (config.vocab_size, draft.config.vocab_size))
    return draft


def _kinds(settings: NativeSettings, draft: Blueprint | None) -> str:
    """What runs, as ``EngineInfo`` tells it."""
    if settings.speculation == "auto":
        return "ngram" if draft is None else "ngram+draft"
    return settings.speculation


def _fused(plan: Blueprint, source: WeightSource, kv: KvTensors) -> FusedDecoder:
    compute = plan.compute
    assert compute.library is not None, "there is no kernel"
    options = FusedOptions(compute.int8, compute.threads, plan.info.max_context_tokens)
    return FusedDecoder(compute.library, plan.config, source, kv, options)


def _eager(plan: Blueprint, source: WeightSource, kv: KvTensors) -> EagerDecoder:
    config, compute = plan.config, plan.compute
    dtype, device = compute.dtype, compute.device
    weights = load_weights(source, config.num_layers, int8=compute.int8)
    rope = RopeTable(config.rope, config.head_dim, plan.info.max_context_tokens, dtype, device)
    shape = BatchShape(plan.kv.block_tokens, config.num_heads // config.num_kv_heads, dtype, device)
    return EagerDecoder(Decoder(config, weights, rope, kv), shape, weights.num_bytes)


def _context(settings: NativeSettings, config: ModelConfig) -> int:
    context = min(settings.max_context or config.max_context, config.max_context)
    if config.sliding_window is not None and context > config.sliding_window:
        raise NotSupported(
            f"sliding_window: this model attends within {config.sliding_window} tokens, which is "
            f"not supported beyond them; set max_context to at most {config.sliding_window}"
        )
    return context
