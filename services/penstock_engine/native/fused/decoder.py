"""The fused decoder: a step plan in, logits out, one call into the kernel.

Owns the packed weights and the kernel's state over the engine's own KV pages. A row's numbers do not
depend on what else is in the step, nor on how its prompt was cut into chunks: the kernel sums in an
order that the row's position alone decides.
"""

import ctypes
import weakref
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock_core.errors import NotSupported
from penstock_engine.native.fused.adapters import PackedAdapter
from penstock_engine.native.fused.library import CLayer, CModel, CStep, Element, Library
from penstock_engine.native.fused.packing import (
    PackedLayer,
    PackedMatrix,
    Packing,
    pack_layer,
    pack_matrix,
    pad_vector,
)
from penstock_engine.native.models.config import ModelConfig
from penstock_engine.native.models.kv_tensors import KvTensors
from penstock_engine.native.models.layers import rope_frequencies
from penstock_engine.native.models.weights import WeightSource
from penstock_engine.native.scheduling.plan import Chunk, StepPlan

_ELEMENTS = {torch.float32: Element.FLOAT, torch.bfloat16: Element.BFLOAT}


@dataclass(frozen=True, slots=True)
class FusedOptions:
    """What the kernel is made for besides the model.

    Attributes:
        int8: quantise weights; else they stay in the type they are read in.
        threads: that compute a step, the caller's included.
        context: positions a sequence may have.
        adapters: those in memory, by name; others change them between steps.
        chores: what its threads do between steps, if anything.
    """

    int8: bool
    threads: int
    context: int
    adapters: Mapping[str, PackedAdapter]
    chores: int | None = None


@dataclass(frozen=True, slots=True)
class _Tensors:
    """Everything the kernel points into."""

    embedding: Tensor
    layers: tuple[PackedLayer, ...]
    head: PackedMatrix
    norm: Tensor
    cosines: Tensor
    sines: Tensor


class FusedDecoder:
    """A model behind the kernel, with threads that end when it is collected."""

    def __init__(
        self,
        library: Library,
        config: ModelConfig,
        source: WeightSource,
        kv: KvTensors,
        options: FusedOptions,
    ) -> None:
        """Read and pack the weights, a layer at a time.

        Raises:
            InvalidRequest: the checkpoint does not fit its config.
            NotSupported: the kernel cannot serve it.
        """
        element = Element.BYTE if options.int8 else _ELEMENTS[kv.pages.dtype]
        self._tensors = _pack(config, source, Packing(element, library.groups[element]), options)
        self._kv = kv
        self._vocabulary = config.vocab_size
        self._hidden_size = config.hidden_size
        self._step = library.step
        self._adapters = options.adapters
        layers = (CLayer * config.num_layers)(*(layer.address() for layer in self._tensors.layers))
        self._layers = layers  # the kernel reads them at each step
        state = library.create(_describe(config, self._tensors, kv, options, element, layers))
        if state is None:
            raise NotSupported("the kernel cannot serve this model")
        self._state = state
        weakref.finalize(self, library.destroy, state)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, a tied embedding counted for each of its two forms."""
        layers = sum(layer.num_bytes for layer in self._tensors.layers)
        return layers + self._tensors.head.num_bytes + self._tensors.embedding.nbytes

    def logits(self, plan: StepPlan) -> Tensor:
        """Compute the chunks; float32 logits ``(wanted positions, vocab)`` in plan order."""
        return self._compute(plan, self._vocabulary, hidden=False)

    def hidden(self, plan: StepPlan) -> Tensor:
        """The same, without the head: float32 ``(wanted positions, hidden size)``, normed."""
        return self._compute(plan, self._hidden_size, hidden=True)

    def _compute(self, plan: StepPlan, width: int, *, hidden: bool) -> Tensor:
        arrays = _lay_out(plan.chunks, self._kv.block_tokens)
        out = torch.empty(len(arrays.logit_rows), width)
        adapters = _adapters(plan.chunks, self._adapters) if self._adapters else None
        self._step(
            self._state,
            CStep(
                rows=len(arrays.tokens),
                chunks=len(plan.chunks),
                logits=len(arrays.logit_rows),
                hidden=hidden,
                tokens=_address(arrays.tokens),
                chunk_rows=_address(arrays.chunk_rows),
                positions=_address(arrays.positions),
                tables=_address(arrays.tables),
                table_starts=_address(arrays.table_starts),
                logit_rows=_address(arrays.logit_rows),
                out=out.data_ptr(),
                adapters=None if adapters is None else adapters.ctypes.data,
            ),
        )
        return out


@dataclass(frozen=True, slots=True)
class _Arrays:
    """A plan as the kernel reads it; see ``PenstockStep``. Python's arrays: NumPy takes longer to make one."""

    tokens: "array[int]"
    chunk_rows: "array[int]"
    positions: "array[int]"
    tables: "array[int]"
    table_starts: "array[int]"
    logit_rows: "array[int]"


def _lay_out(chunks: Sequence[Chunk], block_tokens: int) -> _Arrays:
    tokens: list[int] = []
    tables: list[int] = []
    starts: list[int] = []
    logit_rows: list[int] = []
    for chunk in chunks:
        end, known = chunk.start + chunk.count, chunk.sample.tokens
        if chunk.count == 1:  # most chunks of most steps: without slices
            tokens.append(known[chunk.start])
        else:
            tokens.extend(chunk.tokens)
        logit_rows.extend(range(len(tokens) - chunk.num_logits, len(tokens)))
        starts.append(len(tables))
        tables.extend(chunk.sample.pages[: -(-end // block_tokens)])
    rows = accumulate((chunk.count for chunk in chunks), initial=0)
    return _Arrays(
        tokens=array("i", tokens),
        chunk_rows=array("i", rows),
        positions=array("i", [chunk.start for chunk in chunks]),
        tables=array("i", tables),
        table_starts=array("q", starts),
        logit_rows=array("i", logit_rows),
    )


def _address(numbers: "array[int]") -> int:
    return numbers.buffer_info()[0]


def _adapters(
    chunks: Sequence[Chunk], known: Mapping[str, PackedAdapter]
) -> NDArray[np.uintp] | None:
    """The address of each chunk's adapter, 0 where it has none; None if none has one."""
    names = [chunk.sample.request.spec.adapter for chunk in chunks]
    if not any(names):
        return None
    return np.array([known[name].address if name else 0 for name in names], dtype=np.uintp)


def _pack(
    config: ModelConfig, source: WeightSource, packing: Packing, options: FusedOptions
) -> _Tensors:
    embedding = source.embedding()
    angles = torch.outer(
        torch.arange(options.context).float(), rope_frequencies(config.rope, config.head_dim)
    )
    return _Tensors(
        embedding=embedding,
        layers=tuple(pack_layer(source.layer(i), packing) for i in range(config.num_layers)),
        head=pack_matrix(source.head(embedding), None, packing),
        norm=pad_vector(source.norm().float()),
        cosines=angles.cos(),
        sines=angles.sin(),
    )


def _describe(
    config: ModelConfig,
    tensors: _Tensors,
    kv: KvTensors,
    options: FusedOptions,
    element: Element,
    layers: "ctypes.Array[CLayer]",
) -> CModel:
    return CModel(
        weight_type=element,
        kv_type=_ELEMENTS[kv.pages.dtype],
        embedding_type=_ELEMENTS[tensors.embedding.dtype],
        layers=config.num_layers,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        vocabulary=config.vocab_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        block=kv.block_tokens,
        threads=options.threads,
        pages=kv.pages.shape[1],
        epsilon=config.norm_eps,
        embedding=tensors.embedding.data_ptr(),
        cosines=tensors.cosines.data_ptr(),
        sines=tensors.sines.data_ptr(),
        layer=layers,
        head=tensors.head.address(),
        norm=tensors.norm.data_ptr(),
        kv=kv.pages.data_ptr(),
        chores=options.chores,
    )
