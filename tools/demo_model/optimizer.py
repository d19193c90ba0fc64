"""Muon for the layers' matrices and AdamW for the embedding and the norms.

Muon gets more out of each token than AdamW does on matrices, and with a corpus of a few million
tokens and minutes of processor time, tokens are what there is least of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Return matrices with the same singular vectors and singular values near one.

    Args:
        stack: Matrices of one shape, count by rows by columns with rows <= columns.
        steps: Newton-Schulz iterations.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = stack.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, b * gram + c * (gram @ gram), x, beta=a)
    return x.float()


class Muon:
    """Momentum whose update is orthogonalised, batched over matrices of one shape."""

    def __init__(
        self, params: Iterable[nn.Parameter], decay: float, momentum: float = 0.95
    ) -> None:
        """Group the matrices by shape, a tall one counted as its transpose.

        Args:
            params: Two-dimensional weights.
            decay: Decoupled weight decay, multiplied by the learning rate.
            momentum: Momentum, used the Nesterov way.
        """
        self.decay = decay
        self.momentum = momentum
        groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for param in params:
            rows, columns = param.shape
            groups[min(rows, columns), max(rows, columns)].append(param)
        self.groups = [groups[key] for key in sorted(groups)]
        self.buffers = [torch.stack([_wide(p.data) for p in g]).mul_(0) for g in self.groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the weights from their gradients.

        Args:
            rate: Learning rate.
        """
        for params, buffer in zip(self.groups, self.buffers, strict=True):
            grads = torch.stack([_wide(p.grad) for p in params if p.grad is not None])
            buffer.lerp_(grads, 1 - self.momentum)
            updates = orthogonalise(grads.lerp(buffer, self.momentum))
            for param, update in zip(params, updates, strict=True):
                rows, columns = param.shape
                scale = max(1.0, rows / columns) ** 0.5
                param.mul_(1 - rate * self.decay)
                param.add_(update.mT if rows > columns else update, alpha=-rate * scale)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        for buffer, saved in zip(self.buffers, state["buffers"], strict=True):
            buffer.copy_(saved)


def _wide(x: Tensor) -> Tensor:
    """Return ``x``, transposed if it is tall."""
    return x.mT if x.shape[0] > x.shape[1] else x


class Optimizer:
    """Both optimisers behind one ``step`` that takes the schedule's factor."""

    def __init__(
        self, model: nn.Module, matrix_rate: float, other_rate: float, decay: float
    ) -> None:
        """Share the weights out between Muon and AdamW.

        Args:
            model: Its parameters under ``layers`` with two dimensions go to Muon.
            matrix_rate: Muon's peak learning rate.
            other_rate: AdamW's peak learning rate.
            decay: Weight decay of the matrices.
        """
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, param in model.named_parameters():
            (matrices if param.ndim == 2 and "layers." in name else others).append(param)
        self.matrix_rate = matrix_rate
        self.other_rate = other_rate
        self.muon = Muon(matrices, decay)
        self.adam = torch.optim.AdamW(
            others, lr=other_rate, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0
        )
        self.params = matrices + others

    def step(self, factor: float) -> None:
        """Update every weight and forget the gradients.

        Args:
            factor: The schedule's factor, from 0 to 1.
        """
        self.muon.step(self.matrix_rate * factor)
        for group in self.adam.param_groups:
            group["lr"] = self.other_rate * factor
        self.adam.step()
        for param in self.params:
            param.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
