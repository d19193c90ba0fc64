"""Ragged attention over KV pages with PyTorch's own kernels.

Owns how a step's rows are grouped: sequences with the same small number of new tokens (one for
plain decoding, a few for draft verification) share one padded call, every longer prefill
chunk gets its own. Grouped-query heads ride along as extra query rows, which spares repeating
the keys. Knows page tables, not requests.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from penstock_engine.native.models.config import ModelConfig
from penstock_engine.native.models.kv_tensors import KvTensors
from penstock_engine.native.models.paged import PagedKernel, PagedRows, attend_paged


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Consecutive rows ``[start, stop)`` of the batch: ``num_sequences`` with equally many queries.

    Attributes:
        pages: flat page tables, padded to equal length; None if nothing but the rows is attended to.
        num_keys: attended slots of each sequence, at most the tables' tokens.
        paged: if given, keys are read where they lie, and pages and mask are None.
        mask: added to the scores, ``(sequences, 1, group * queries, num_keys)``; None if every query
            sees every key, or, without pages, for the plain causal triangle.
    """

    start: int
    stop: int
    num_sequences: int
    pages: Tensor | None
    num_keys: int
    mask: Tensor | None
    paged: PagedRows | None = None


class PagedAttention:
    """Attention of one batch's rows to their sequences' cached and new tokens."""

    def __init__(
        self, config: ModelConfig, kv: KvTensors, kernel: PagedKernel = attend_paged
    ) -> None:
        self._kv = kv
        self._kernel = kernel
        self._num_kv_heads = config.num_kv_heads
        self._group = config.num_heads // config.num_kv_heads
        self._head_dim = config.head_dim

    def attend(self, layer: int, queries: Tensor, new: Tensor, group: AttentionGroup) -> Tensor:
        """Output of a group's rows, ``(rows, heads * head_dim)``.

        ``queries`` is ``(rows, heads, head_dim)``; ``new`` holds the rows' own keys and values,
        ``(rows, 2, kv_heads, head_dim)``, which the pages contain as well by now.
        """
        if group.paged is not None:
            return self._kernel(queries, self._kv.pages[layer], group.paged)
        if group.pages is None:
            return self._fresh(queries, new)
        found = self._kv.gather(layer, group.pages, group.num_sequences)[:, : group.num_keys]
        keys, values = found[:, :, 0].transpose(1, 2), found[:, :, 1].transpose(1, 2)
        stacked = self._stack_queries(queries, group.num_sequences)
        out = functional.scaled_dot_product_attention(stacked, keys, values, attn_mask=group.mask)
        return self._unstack(out, queries.shape[0])

    def _fresh(self, queries: Tensor, new: Tensor) -> Tensor:
        """A prompt's first chunk attends to itself alone."""
        repeated = new.repeat_interleave(self._group, dim=2) if self._group > 1 else new
        keys, values = repeated.unbind(1)
        query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (queries, keys, values))
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out.squeeze(0).transpose(0, 1).reshape(queries.shape[0], -1)

    def _stack_queries(self, queries: Tensor, num_sequences: int) -> Tensor:
        """``(sequences, kv_heads, group * queries, head_dim)``: heads of a group side by side."""
        shape = (num_sequences, -1, self._num_kv_heads, self._group, self._head_dim)
        stacked = queries.reshape(shape).permute(0, 2, 3, 1, 4)
        return stacked.reshape(num_sequences, self._num_kv_heads, -1, self._head_dim)

    def _unstack(self, out: Tensor, rows: int) -> Tensor:
        num_sequences, num_queries = out.shape[0], rows // out.shape[0]
        shape = (num_sequences, self._num_kv_heads, self._group, num_queries, self._head_dim)
        return out.view(shape).permute(0, 3, 1, 2, 4).reshape(rows, -1)


def causal_mask(positions: Tensor, num_keys: int, group: int, dtype: torch.dtype) -> Tensor:
    """Additive mask for queries at ``positions`` ``(sequences, queries)`` over keys ``0..num_keys``.

    Returns ``(sequences, 1, group * queries, num_keys)``, repeated for the heads of a group.
    """
    keys = torch.arange(num_keys, device=positions.device)
    hidden = keys > positions.unsqueeze(-1)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    mask.masked_fill_(hidden, float("-inf"))
    return mask.repeat(1, group, 1).unsqueeze(1)
