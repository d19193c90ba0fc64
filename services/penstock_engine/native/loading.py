"""From settings to a runner: reads the checkpoint and allocates the KV cache.

Owns the choices left to "auto" and the refusals before anything is loaded.
"""

from dataclasses import dataclass, replace

import torch

from penstock_core.errors import InvalidRequest, NotSupported
from penstock_engine.api import EngineInfo
from penstock_engine.native.batching import BatchShape
from penstock_engine.native.kv_tensors import KvShape, KvTensors
from penstock_engine.native.layers import RopeTable
from penstock_engine.native.masks import Masks
from penstock_engine.native.models import read_config, read_eos
from penstock_engine.native.models.config import ModelConfig
from penstock_engine.native.models.decoder import Decoder
from penstock_engine.native.revision import model_revision
from penstock_engine.native.runner import Runner
from penstock_engine.native.settings import NativeSettings
from penstock_engine.native.step_loop import Machine
from penstock_engine.native.weights import load_weights, shard_paths
from penstock_engine.speculative.draft import DraftLimits, DraftModel
from penstock_engine.speculative.pairing import check_pair
from penstock_engine.speculative.speculator import Speculator

_SPECULATION = ("none", "ngram", "draft", "auto")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Everything decided about an engine before its weights are read; ``draft`` if a model drafts."""

    settings: NativeSettings
    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    kv: KvShape
    info: EngineInfo
    draft: "Blueprint | None" = None


def draw_up(settings: NativeSettings) -> Blueprint:
    """Decide dtype, device, context and number of pages.

    Raises:
        InvalidRequest: the directory or a setting is no good.
        NotSupported: the checkpoint asks for something this engine does not compute.
    """
    config = read_config(settings.model)
    shard_paths(settings.model)
    device = _device(settings.device)
    dtype = _dtype(settings.dtype, config, device)
    kv = KvShape.of(config, settings.block_tokens, dtype.itemsize)
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
        device=str(device),
        block_tokens=settings.block_tokens,
        capacity_blocks=num_pages,
        max_context_tokens=_context(settings, config),
        max_batch=settings.max_batch,
        vocab_size=config.vocab_size,
        eos_token_ids=read_eos(settings.model),
        speculation=_kinds(settings, draft),
    )
    return Blueprint(settings, config, dtype, device, kv, info, draft)


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
    config, dtype, device = plan.config, plan.dtype, plan.device
    weights = load_weights(plan.settings.model, config, dtype, device)
    length = plan.info.max_context_tokens
    rope = RopeTable(config.rope, config.head_dim, length, dtype, device)
    kv = KvTensors(plan.kv, plan.info.capacity_blocks, dtype, device)
    decoder = Decoder(config, weights, rope, kv)
    heads = config.num_heads // config.num_kv_heads
    return Runner(decoder, kv, BatchShape(plan.kv.block_tokens, heads, dtype, device), masks)


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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidRequest(f"device {name!r} is unknown to torch", field="device") from error
    if device.type not in {"cpu", "cuda"}:
        raise NotSupported(f"device {name!r} is not supported (cpu and cuda are)")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidRequest(f"device {name!r} was asked for and no GPU is there", field="device")
    return device


def _dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = config.dtype if device.type == "cuda" else "float32"
    if name not in _DTYPES:
        raise NotSupported(f"dtype {name!r} is not supported ({', '.join(_DTYPES)} are)")
    return _DTYPES[name]


def _context(settings: NativeSettings, config: ModelConfig) -> int:
    context = min(settings.max_context or config.max_context, config.max_context)
    if config.sliding_window is not None and context > config.sliding_window:
        raise NotSupported(
            f"sliding_window: this model attends within {config.sliding_window} tokens, which is "
            f"not supported beyond them; set max_context to at most {config.sliding_window}"
        )
    return context
