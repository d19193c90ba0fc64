"""From settings to a runner: reads the checkpoint and allocates the KV cache.

Owns the refusals before anything is loaded and the account of what the weights take.
"""

import logging
from dataclasses import dataclass, replace

from llguidance import LLMatcher

from penstock_core.errors import InvalidRequest, NotSupported
from penstock_engine.api import EngineInfo
from penstock_engine.native.compute import Compute, choose
from penstock_engine.native.execution.batching import BatchShape
from penstock_engine.native.execution.embedding import EmbedLimits
from penstock_engine.native.execution.runner import EagerDecoder, PlanDecoder, Runner
from penstock_engine.native.execution.step_loop import Machine
from penstock_engine.native.fused.adapters import PackedShelf
from penstock_engine.native.fused.decoder import FusedDecoder, FusedOptions
from penstock_engine.native.fused.draw import KernelRows
from penstock_engine.native.fused.following import FollowedMasks
from penstock_engine.native.lora.eager import EagerShelf
from penstock_engine.native.lora.reading import find_adapters
from penstock_engine.native.models import read_config, read_eos
from penstock_engine.native.models.config import ModelConfig
from penstock_engine.native.models.decoder import Decoder
from penstock_engine.native.models.kv_tensors import KvShape, KvTensors
from penstock_engine.native.models.layers import RopeTable
from penstock_engine.native.models.quantization import preparation
from penstock_engine.native.models.weights import (
    Checkpoint,
    WeightSource,
    load_weights,
    shard_paths,
)
from penstock_engine.native.settings import NativeSettings
from penstock_engine.native.structured.grammars import Grammars, LibraryCompiler
from penstock_engine.native.structured.llguidance_c import CMatcher, open_grammar_library
from penstock_engine.native.structured.masks import Masks, StepMasks
from penstock_engine.native.structured.vocabulary import Vocabulary
from penstock_engine.revision import model_revision
from penstock_engine.speculative.draft import DraftLimits, DraftModel
from penstock_engine.speculative.pairing import check_pair
from penstock_engine.speculative.speculator import Speculator

logger = logging.getLogger(__name__)

_SPECULATION = ("none", "ngram", "draft", "auto")
_DRAFT_THREADS = 1
"""A draft model's step is so short that a barrier costs more than a second thread saves."""
_MIB = 1 << 20
_LEAST_PAGED_BLOCK = 16
_MAX_EMBED_WAITING = 1 << 20
"""Tokens that wait to be embedded."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Everything decided about an engine before its weights are read; ``draft`` if a model drafts."""

    settings: NativeSettings
    config: ModelConfig
    compute: Compute
    kv: KvShape
    info: EngineInfo
    draft: "Blueprint | None" = None

    @property
    def embed_limits(self) -> EmbedLimits:
        """Embeddings have the pages behind the scheduler's."""
        size, capacity = self.info.block_tokens, self.info.capacity_blocks
        pages = range(capacity, capacity + -(-self.info.max_embed_tokens // size))
        step_tokens = self.settings.max_batched_tokens
        return EmbedLimits(pages, size, step_tokens, _MAX_EMBED_WAITING)

    @property
    def reads_pages(self) -> bool:
        """Whether the GPU's own attention and captured steps run."""
        size, compute = self.kv.block_tokens, self.compute
        fits = size >= _LEAST_PAGED_BLOCK and size & (size - 1) == 0
        return compute.device.type == "cuda" and self.settings.kernel != "eager" and fits

    @property
    def num_pages(self) -> int:
        """Pages of the KV tensors: the scheduler's, embeddings', one for rows of no sequence."""
        return self.embed_limits.pages.stop + self.reads_pages


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
    context = _context(settings, config)
    info = EngineInfo(
        engine="native",
        model_revision=model_revision(settings.model),
        device=str(compute),
        block_tokens=settings.block_tokens,
        capacity_blocks=num_pages,
        max_context_tokens=context,
        max_batch=settings.max_batch,
        vocab_size=config.vocab_size,
        eos_token_ids=read_eos(settings.model),
        speculation=_kinds(settings, draft),
        adapters=find_adapters(settings.adapters) if settings.adapters else (),
        embedding_dimensions=config.hidden_size if settings.max_embed_tokens else 0,
        max_embed_tokens=min(settings.max_embed_tokens, context),
    )
    return Blueprint(settings, config, compute, kv, info, draft)


AdapterShelf = EagerShelf | PackedShelf


def adapter_shelf(plan: Blueprint) -> AdapterShelf:
    """Where adapters will lie for what computes this model."""
    compute = plan.compute
    if compute.library is not None:
        return PackedShelf(plan.config, compute.dtype)
    return EagerShelf(compute.dtype, compute.device)


AnyGrammars = Grammars[LLMatcher] | Grammars[CMatcher]


def constraint_parts(
    plan: Blueprint, vocabulary: Vocabulary | None
) -> tuple[AnyGrammars, StepMasks]:
    """What compiles constraints, and what knows a step's masks by them."""
    library, vocab_size = plan.compute.library, plan.info.vocab_size
    most = plan.settings.max_waiting
    grammars = open_grammar_library() if library is not None else None
    if library is None or grammars is None:
        return Grammars(vocabulary, vocab_size, most, LibraryCompiler), Masks(vocab_size)
    masks = FollowedMasks(library, grammars, vocab_size)
    return Grammars(vocabulary, vocab_size, most, masks.compiler), masks


def load_machine(plan: Blueprint, masks: StepMasks, shelf: AdapterShelf | None = None) -> Machine:
    """A runner, and what drafts for it. Raises InvalidRequest as ``load_runner`` does."""
    runner, settings = load_runner(plan, masks, shelf), plan.settings
    model = None
    if plan.draft is not None:
        # As many pages as the model has: any sequence that runs can be followed.
        pages = plan.info.capacity_blocks
        draft = replace(
            plan.draft,
            info=replace(plan.draft.info, capacity_blocks=pages),
            compute=_for_drafts(plan.draft.compute),
        )
        limits = DraftLimits(draft.info.max_context_tokens, pages, draft.kv.block_tokens)
        model = DraftModel(load_runner(draft), limits)
    looks_up = settings.speculation in {"ngram", "auto"}
    drafting = Speculator(settings.max_draft_tokens, model, looks_up=looks_up)
    return Machine(runner.run, drafting, runner.hidden)


def load_runner(
    plan: Blueprint, masks: StepMasks | None = None, shelf: AdapterShelf | None = None
) -> Runner:
    """Read the weights and allocate the pages. Without a shelf, adapters are ignored.

    Raises:
        InvalidRequest: the weights do not fit the config.
    """
    model, compute = plan.settings.model, plan.compute
    kv = KvTensors(plan.kv, plan.num_pages, compute.dtype, compute.device)
    with Checkpoint(model, compute.dtype, compute.device) as checkpoint:
        source = WeightSource(checkpoint, plan.config)
        if compute.library is not None:
            decoder: PlanDecoder = _fused(plan, source, kv, _options(plan, masks, shelf))
        else:
            decoder = _eager(plan, source, kv, shelf)
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
    rows = KernelRows(compute.library) if compute.library else None
    return Runner(decoder, kv, masks, rows)


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
    alone = replace(
        settings,
        model=path,
        draft_model=None,
        speculation="none",
        adapters=None,
        max_embed_tokens=0,
    )
    draft = draw_up(alone)
    check_pair(settings.model, path, (config.vocab_size, draft.config.vocab_size))
    return draft


def _for_drafts(compute: Compute) -> Compute:
    """What a guess is worth computing with: the kernel reads bytes in half the time."""
    int8 = compute.int8 or compute.library is not None
    return replace(compute, threads=_DRAFT_THREADS, int8=int8)


def _kinds(settings: NativeSettings, draft: Blueprint | None) -> str:
    """What runs, as ``EngineInfo`` tells it."""
    if settings.speculation == "auto":
        return "ngram" if draft is None else "ngram+draft"
    return settings.speculation


def _options(plan: Blueprint, masks: StepMasks | None, shelf: AdapterShelf | None) -> FusedOptions:
    compute = plan.compute
    return FusedOptions(
        int8=compute.int8,
        threads=compute.threads,
        context=plan.info.max_context_tokens,
        adapters=shelf.adapters if isinstance(shelf, PackedShelf) else {},
        chores=masks.chores if isinstance(masks, FollowedMasks) else None,
    )


def _fused(
    plan: Blueprint, source: WeightSource, kv: KvTensors, options: FusedOptions
) -> FusedDecoder:
    assert plan.compute.library is not None, "there is no kernel"
    return FusedDecoder(plan.compute.library, plan.config, source, kv, options)


def _eager(
    plan: Blueprint, source: WeightSource, kv: KvTensors, shelf: AdapterShelf | None
) -> PlanDecoder:
    config, compute = plan.config, plan.compute
    dtype, device = compute.dtype, compute.device
    prepare = preparation(dtype, device, int8=compute.int8)
    weights = load_weights(source, config.num_layers, prepare)
    rope = RopeTable(config.rope, config.head_dim, plan.info.max_context_tokens, dtype, device)
    shape = BatchShape(plan.kv.block_tokens, config.num_heads // config.num_kv_heads, dtype, device)
    adapters = shelf.adapters if isinstance(shelf, EagerShelf) else {}
    if not plan.reads_pages:
        return EagerDecoder(Decoder(config, weights, rope, kv), shape, weights.num_bytes, adapters)
    # Triton comes with CUDA's builds of torch alone.
    from penstock_engine.native.cuda.graphs import (  # noqa: PLC0415
        GraphedDecoder,
        GraphRoom,
        capture_graph,
    )
    from penstock_engine.native.cuda.paged import attend_paged  # noqa: PLC0415

    decoder = Decoder(config, weights, rope, kv, attend_paged)
    paged = replace(shape, paged=True)
    max_pages = -(-plan.info.max_context_tokens // plan.kv.block_tokens)
    room = GraphRoom(plan.settings.max_batch, max_pages, plan.num_pages - 1)
    eager = EagerDecoder(decoder, paged, weights.num_bytes, adapters)
    return GraphedDecoder(eager, decoder, paged, room, capture_graph)


def _context(settings: NativeSettings, config: ModelConfig) -> int:
    context = min(settings.max_context or config.max_context, config.max_context)
    if config.sliding_window is not None and context > config.sliding_window:
        raise NotSupported(
            f"sliding_window: this model attends within {config.sliding_window} tokens, which is "
            f"not supported beyond them; set max_context to at most {config.sliding_window}"
        )
    return context
