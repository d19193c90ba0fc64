"""Which tokens may be drawn: top-k, then top-p of what is left, then min-p.

Owns the thresholds. A row is cut at the value of its least kept token, so tokens with equal
logits fall or stay together. Sorting a whole vocabulary costs more than the model does; the best
few nearly always decide, and more are looked at only while some row needs them.

Source: top-p, https://arxiv.org/abs/1904.09751; min-p, https://arxiv.org/abs/2407.01082.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from penstock_engine.api import Sampling

_FIRST_WIDTH = 128
_WIDENING = 8


def truncate(logits: Tensor, settings: Sequence[Sampling]) -> None:
    """Set what may not be drawn to minus infinity, in place; ``logits`` is ``(rows, vocab)``."""
    if any(setting.top_k or setting.top_p < 1.0 for setting in settings):
        least = _least_kept(logits, settings)
        logits.masked_fill_(logits < least, float("-inf"))
    if any(setting.min_p for setting in settings):
        floor = _column(logits, [setting.min_p for setting in settings]).log()
        least = logits.amax(dim=-1, keepdim=True) + floor
        logits.masked_fill_(logits < least, float("-inf"))


def _least_kept(logits: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """The smallest logit that top-k and top-p keep in each row, ``(rows, 1)``."""
    vocab = logits.shape[1]
    widest = min(max(setting.top_k for setting in settings), vocab)
    best = logits.amax(dim=-1, keepdim=True)
    everything = (logits - best).exp().sum(dim=-1, keepdim=True)
    top_k = _column(logits, [min(setting.top_k or vocab, vocab) for setting in settings]).long()
    top_p = _column(logits, [setting.top_p for setting in settings])
    untouched = (top_k == vocab) & (top_p >= 1.0)
    width = min(max(_FIRST_WIDTH, widest), vocab)
    while True:
        ordered = logits.topk(width, dim=-1).values
        weights = (ordered - best).exp()
        cumulated = weights.cumsum(dim=-1)
        of_top_k = cumulated.gather(1, top_k.clamp(max=width) - 1)
        mass = top_p * torch.where(top_k < vocab, of_top_k, everything)
        decided = untouched | (top_k <= width) | (cumulated[:, -1:] >= mass)
        if width == vocab or bool(decided.all()):
            break
        width = min(width * _WIDENING, vocab)
    ranks = torch.arange(width, device=logits.device)
    kept = (ranks < top_k) & (cumulated - weights < mass)
    least = ordered.gather(1, kept.sum(dim=-1, keepdim=True).clamp(min=1) - 1)
    return least.masked_fill(untouched, float("-inf"))


def _column(logits: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=logits.dtype, device=logits.device).unsqueeze(1)
