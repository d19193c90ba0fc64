"""From a step plan to the tensors of one batch.

Owns the order of rows (chunks with equally few tokens side by side, so that they share an
attention call) and the masks. Integers are assembled in NumPy and cross to the device in one
transfer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock_engine.native.lora.eager import AdaptedRows, EagerAdapter
from penstock_engine.native.models.attention import AttentionGroup, causal_mask
from penstock_engine.native.models.decoder import Batch
from penstock_engine.native.models.paged import PagedRows
from penstock_engine.native.scheduling.plan import Chunk, StepPlan

_MAX_GROUPED_TOKENS = 8
"""Chunks of up to this many tokens are padded together; for longer ones padding costs more than calls."""

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What of the model and the cache decides a batch's tensors; ``paged`` if a kernel reads pages."""

    block_tokens: int
    heads_per_kv_head: int
    dtype: torch.dtype
    device: torch.device
    paged: bool = False


@dataclass(frozen=True, slots=True)
class _Rows:
    """Chunks that form one attention group, and their first row."""

    chunks: tuple[Chunk, ...]
    start: int

    @property
    def queries(self) -> int:
        return self.chunks[0].count

    @property
    def stop(self) -> int:
        return self.start + len(self.chunks) * self.queries

    @property
    def num_keys(self) -> int:
        return max(chunk.start + chunk.count for chunk in self.chunks)

    @property
    def is_fresh(self) -> bool:
        """A long first chunk: it attends to nothing but itself."""
        return self.queries > _MAX_GROUPED_TOKENS and self.chunks[0].start == 0


def build_batch(
    plan: StepPlan, shape: BatchShape, adapters: Mapping[str, EagerAdapter] | None = None
) -> Batch:
    """The tensors of a step; logits come in the order of the plan's chunks.

    ``adapters`` are those in memory, all that the plan's requests ask for among them.
    """
    groups = _group(plan.chunks)
    ordered = [chunk for group in groups for chunk in group.chunks]
    tokens = np.concatenate([_tokens(chunk) for chunk in ordered])
    positions = np.concatenate(
        [np.arange(chunk.start, chunk.start + chunk.count) for chunk in ordered]
    )
    slots = np.concatenate([_slots(chunk, shape.block_tokens) for chunk in ordered])
    logit_rows = _logit_rows(plan.chunks, groups)
    tables = [_page_table(group, shape.block_tokens) for group in groups]
    parts = _to_device([tokens, positions, slots, logit_rows, *tables], shape.device)
    return Batch(
        tokens=parts[0],
        positions=parts[1],
        slots=parts[2],
        groups=tuple(
            _attention_group(group, table, parts[1], shape)
            for group, table in zip(groups, parts[4:], strict=True)
        ),
        logit_rows=parts[3],
        adapted=_adapted(ordered, adapters, shape.device) if adapters else (),
    )


def _group(chunks: Sequence[Chunk]) -> list[_Rows]:
    together: dict[int, list[Chunk]] = {}
    alone: list[list[Chunk]] = []
    for chunk in chunks:
        if chunk.count <= _MAX_GROUPED_TOKENS:
            together.setdefault(chunk.count, []).append(chunk)
        else:
            alone.append([chunk])
    groups, start = [], 0
    for members in (*together.values(), *alone):
        groups.append(_Rows(tuple(members), start))
        start = groups[-1].stop
    return groups


def _adapted(
    chunks: Sequence[Chunk], adapters: Mapping[str, EagerAdapter], device: torch.device
) -> tuple[AdaptedRows, ...]:
    """Rows by adapter, whichever sequences they belong to."""
    names = [chunk.sample.request.spec.adapter for chunk in chunks]
    wanted = sorted(set(names))
    if len(wanted) == 1:
        return (AdaptedRows(adapters[wanted[0]], None),) if wanted[0] else ()
    starts = accumulate((chunk.count for chunk in chunks), initial=0)
    spans = [
        np.arange(start, start + chunk.count) for start, chunk in zip(starts, chunks, strict=False)
    ]
    found = []
    for name in filter(None, wanted):
        rows = np.concatenate([span for span, own in zip(spans, names, strict=True) if own == name])
        found.append(AdaptedRows(adapters[name], torch.from_numpy(rows).to(device)))
    return tuple(found)


def _tokens(chunk: Chunk) -> Integers:
    return np.array(chunk.tokens, dtype=np.int64)


def _slots(chunk: Chunk, block_tokens: int) -> Integers:
    first = chunk.start // block_tokens
    last = (chunk.start + chunk.count - 1) // block_tokens
    pages = np.array(chunk.sample.pages[first : last + 1], dtype=np.int64)
    positions = np.arange(chunk.start, chunk.start + chunk.count)
    return pages[positions // block_tokens - first] * block_tokens + positions % block_tokens


def _logit_rows(chunks: Sequence[Chunk], groups: Sequence[_Rows]) -> Integers:
    ends = {
        id(chunk): group.start + (index + 1) * group.queries
        for group in groups
        for index, chunk in enumerate(group.chunks)
    }
    rows = [np.arange(ends[id(chunk)] - chunk.num_logits, ends[id(chunk)]) for chunk in chunks]
    return np.concatenate(rows)


def _page_table(group: _Rows, block_tokens: int) -> Integers:
    """Flat tables of a group; padding names page 0, which the mask hides."""
    if group.is_fresh:
        return np.empty(0, dtype=np.int64)
    width = -(-group.num_keys // block_tokens)
    table = np.zeros((len(group.chunks), width), dtype=np.int64)
    for row, chunk in zip(table, group.chunks, strict=True):
        pages = chunk.sample.pages[:width]
        row[: len(pages)] = pages
    return table.ravel()


def _to_device(parts: Sequence[Integers], device: torch.device) -> list[Tensor]:
    packed = torch.from_numpy(np.concatenate(parts)).to(device)
    return list(torch.split(packed, [len(part) for part in parts]))


def _attention_group(
    group: _Rows, table: Tensor, positions: Tensor, shape: BatchShape
) -> AttentionGroup:
    count, num_keys = len(group.chunks), group.num_keys
    if group.is_fresh:
        return AttentionGroup(group.start, group.stop, count, None, num_keys, None)
    if shape.paged and group.queries <= _MAX_GROUPED_TOKENS:
        lengths = positions[group.start : group.stop] + 1
        where = PagedRows(table.view(count, -1), lengths, group.queries)
        return AttentionGroup(group.start, group.stop, count, None, num_keys, None, where)
    mask = None
    if group.queries > 1 or any(chunk.start + 1 != num_keys for chunk in group.chunks):
        rows = positions[group.start : group.stop].view(count, group.queries)
        mask = causal_mask(rows, num_keys, shape.heads_per_kv_head, shape.dtype)
    return AttentionGroup(group.start, group.stop, count, table, num_keys, mask)
