"""How PyTorch's own operators hold and multiply a matrix: as it is, packed by oneDNN, or in int8.

Owns int8's formula (symmetric, one scale for each output), which the kernel shares, and the eager
products with each kind of matrix.
"""

from collections.abc import Callable
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


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """``(out, in)`` in the blocked layout that oneDNN chose for products with a row; opaque."""

    blocks: Tensor
    num_bytes: int


Matrix = Tensor | Int8Matrix | PackedMatrix
Prepare = Callable[[Tensor], Matrix]


def preparation(dtype: torch.dtype, device: torch.device, *, int8: bool) -> Prepare:
    """What makes a checkpoint's matrix the one to multiply with.

    Packing is for bfloat16 on a CPU: a product with a few rows takes 0.6 to 0.8 of the time. In float32
    the same operator is slower than the plain product, which finds a faster kernel by itself.
    """
    if int8:
        return quantize
    return pack if device.type == "cpu" and dtype == torch.bfloat16 and can_pack() else _as_it_is


def can_pack() -> bool:
    """Whether PyTorch was built with oneDNN."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _as_it_is(weight: Tensor) -> Matrix:
    return weight


def pack(weight: Tensor) -> PackedMatrix:
    """Have oneDNN lay a bfloat16 matrix out for products with few rows."""
    return PackedMatrix(torch.ops.mkldnn._reorder_linear_weight(weight, 1), weight.nbytes)


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
    if isinstance(weight, PackedMatrix):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight.blocks, bias, "none", [], "")
        return out
    scales = weight.scales.to(rows.dtype)
    # PyTorch's product with bytes is quick in bfloat16 on a CPU; in float32 it takes 2 to 80 times
    # as long as to widen the matrix and multiply with that.
    if rows.device.type == "cpu" and rows.dtype == torch.bfloat16:
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
    if isinstance(weight, PackedMatrix):
        return weight.num_bytes
    return weight.values.nbytes + weight.scales.nbytes
