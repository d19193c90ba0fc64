"""Paged attention in Triton: each key and value is read once, by whom it is for, from its page.

A program serves one row and one key-value head with all query heads of its group, over a share of
the row's pages; the shares are joined by their softmax sums. Source: split-KV decoding, Dao et al.,
https://crfm.stanford.edu/2023/10/12/flashdecoding.html.
"""

# Triton's language is made of untyped values, and its kernels are no functions of Python's.
# mypy: ignore-errors
# ruff: noqa: N803, PLR0913, PLR0917

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_engine.native.models.paged import PagedRows

SPLITS = 8
LEAST_BLOCK = 16
"""A page has at least so many tokens, and a power of two of them."""


@triton.jit
def _share(
    queries, pages, tables, lengths, out, peaks, sums, table_width, rows_each, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, GROUP_PAD: tl.constexpr,
    DIM_PAD: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    members, dims = tl.arange(0, GROUP_PAD), tl.arange(0, DIM_PAD)
    tokens = tl.arange(0, BLOCK)
    length = tl.load(lengths + row).to(tl.int32)
    num_pages = (length + BLOCK - 1) // BLOCK
    share = (num_pages + SPLITS - 1) // SPLITS
    own = (members[:, None] < GROUP) & (dims[None, :] < DIM)
    first = (row * KV_HEADS + head) * GROUP * DIM
    q = tl.load(queries + first + members[:, None] * DIM + dims[None, :], mask=own, other=0.0)
    peak = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)
    for index in range(split * share, tl.minimum((split + 1) * share, num_pages)):
        page = tl.load(tables + (row // rows_each) * table_width + index).to(tl.int64)
        token = (page * BLOCK + tokens) * 2 * KV_HEADS * DIM + head * DIM
        seen = index * BLOCK + tokens < length
        there = seen[:, None] & (dims[None, :] < DIM)
        k = tl.load(pages + token[:, None] + dims[None, :], mask=there, other=0.0)
        v = tl.load(pages + token[:, None] + KV_HEADS * DIM + dims[None, :], mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        top = tl.maximum(peak, tl.max(scores, 1))
        shrink = tl.exp(peak - top)
        weights = tl.exp(scores - top[:, None])
        acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        peak = top
    at = ((row * SPLITS + split) * KV_HEADS + head) * GROUP
    tl.store(out + (at + members[:, None]) * DIM + dims[None, :], acc, mask=own)
    tl.store(peaks + at + members, peak, mask=members < GROUP)
    tl.store(sums + at + members, total, mask=members < GROUP)


def attend_paged(queries: Tensor, pages: Tensor, where: PagedRows) -> Tensor:
    """See ``PagedKernel``. The pages must lie without gaps."""
    rows, heads, dim = queries.shape
    block, kv_heads = pages.shape[1], pages.shape[3]
    group = heads // kv_heads
    shape = (rows, SPLITS, heads)
    shares = torch.empty(*shape, dim, dtype=torch.float32, device=queries.device)
    peaks = torch.empty(shape, dtype=torch.float32, device=queries.device)
    sums = torch.empty_like(peaks)
    _share[(rows, kv_heads, SPLITS)](
        queries.contiguous(), pages, where.tables, where.lengths, shares, peaks, sums,
        where.tables.stride(0), where.rows, dim**-0.5,
        KV_HEADS=kv_heads, GROUP=group, DIM=dim, GROUP_PAD=max(16, triton.next_power_of_2(group)),
        DIM_PAD=max(16, triton.next_power_of_2(dim)), BLOCK=block, SPLITS=SPLITS,
    )  # fmt: skip
    weights = torch.exp(peaks - peaks.amax(1, keepdim=True))
    total = (sums * weights).sum(1)
    out = (shares * weights.unsqueeze(-1)).sum(1) / total.unsqueeze(-1)
    return out.reshape(rows, heads * dim).to(queries.dtype)
