"""Int8 weights: symmetric, one scale for each output of a matrix.

Owns the formula, which the kernel shares, and the eager product with such a matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_LARGEST = 127


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """``(out, in)`` whole numbers; row ``i`` stands for ``values[i] * scales[i]``."""

    values: Tensor
    scales: Tensor


Matrix = Tensor | Int8Matrix


def quantize(weight: Tensor) -> Int8Matrix:
    """Whole numbers in ``[-127, 127]`` and a float32 scale for each row of ``(out, in)``.

    ``-128`` is left out: so every row is as fine on either side of zero.
    """
    wide = weight.float()
    scales = wide.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
    whole = (wide / scales.unsqueeze(1)).round_().clamp_(-_LARGEST, _LARGEST)
    return Int8Matrix(whole.to(torch.int8), scales)


def linear(rows: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
    """``rows @ weight.T + bias``."""
    if isinstance(weight, Tensor):
        return functional.linear(rows, weight, bias)
    scales = weight.scales.to(rows.dtype)
    if rows.device.type == "cpu":
        total = torch._weight_int8pack_mm(rows, weight.values, scales)
    else:
        total = functional.linear(rows, weight.values.to(rows.dtype)).mul_(scales)
    return total if bias is None else total.add_(bias)


def add_linear(residual: Tensor, rows: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
    """``residual + rows @ weight.T + bias``; one product where the weight is a tensor."""
    if not isinstance(weight, Tensor):
        return linear(rows, weight, bias).add_(residual)
    total = torch.addmm(residual, rows, weight.t())
    return total if bias is None else total.add_(bias)


def num_bytes(weight: Matrix) -> int:
    """Memory of a matrix."""
    if isinstance(weight, Tensor):
        return weight.nbytes
    return weight.values.nbytes + weight.scales.nbytes
