"""Attention of single rows to KV pages that are read where they lie.

Owns the contract of the kernels that do this and its plain form in PyTorch, which tests hold them to.
torch's own (``torch.nn.attention.varlen`` with a block table) takes pages of 256 tokens and more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedRows:
    """Where rows find their keys.

    Attributes:
        tables: pages of each sequence, ``(sequences, pages)``; what pads it names any page.
        lengths: keys that each row sees, at least one, ``(rows,)``.
        rows: consecutive rows of each sequence.
    """

    tables: Tensor
    lengths: Tensor
    rows: int


PagedKernel = Callable[[Tensor, Tensor, PagedRows], Tensor]
"""From queries ``(rows, heads, dim)`` and a layer's pages ``(pages, block, 2, kv_heads, dim)`` to what the
rows attended, ``(rows, heads * dim)``."""


def attend_paged(queries: Tensor, pages: Tensor, where: PagedRows) -> Tensor:
    """A ``PagedKernel`` of PyTorch's operators: exact, and as slow as a gather is."""
    rows, heads, dim = queries.shape
    kv_heads = pages.shape[3]
    tables = where.tables.repeat_interleave(where.rows, dim=0)
    found = pages[tables].flatten(1, 2)  # (rows, keys, 2, kv_heads, dim)
    keys, values = found[:, :, 0].float(), found[:, :, 1].float()
    grouped = queries.float().view(rows, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("rhgd,rkhd->rhgk", grouped, keys) * dim**-0.5
    hidden = torch.arange(keys.shape[1], device=pages.device) >= where.lengths[:, None]
    weights = scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1)
    out = torch.einsum("rhgk,rkhd->rhgd", weights, values)
    return out.reshape(rows, heads * dim).to(queries.dtype)
