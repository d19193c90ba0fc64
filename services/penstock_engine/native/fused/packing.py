"""Weights in the layout the kernel reads: panels of 64 columns, padded with zeros.

Owns the layout, its padding and int8 quantisation (symmetric, one scale for each output). Every
width is rounded up to 64, so the kernel has no ragged ends and takes any model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from penstock_engine.native.fused.library import CLayer, CMatrix, Element
from penstock_engine.native.models import hugepages
from penstock_engine.native.models.quantization import quantize
from penstock_engine.native.models.weights import LayerWeights

PANEL = 64
_HALF = PANEL // 2


@dataclass(frozen=True, slots=True)
class Packing:
    """How matrices are packed: the type of weights, and how many of a column stand together."""

    element: Element
    group: int


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix in panels, ``(columns / 64, depth / group, 64, group)``, with what goes beside it.

    ``scales`` and ``shifts`` (128 times a column's sum) are there for int8 only.
    """

    panels: Tensor
    scales: Tensor | None
    shifts: Tensor | None
    bias: Tensor | None

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        parts = (self.panels, self.scales, self.shifts, self.bias)
        return sum(part.nbytes for part in parts if part is not None)

    def address(self) -> CMatrix:
        """Where the kernel finds it; the tensors must outlive this."""
        count, steps, _, group = self.panels.shape
        return CMatrix(
            panels=self.panels.data_ptr(),
            scales=pointer(self.scales),
            shifts=pointer(self.shifts),
            bias=pointer(self.bias),
            columns=count * PANEL,
            depth=steps * group,
        )


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """One block, packed; norms in float32 and padded."""

    query_key_value: PackedMatrix
    output: PackedMatrix
    gate_up: PackedMatrix
    down: PackedMatrix
    attention_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    mlp_norm: Tensor

    @property
    def num_bytes(self) -> int:
        """Memory of its matrices."""
        matrices = (self.query_key_value, self.output, self.gate_up, self.down)
        return sum(matrix.num_bytes for matrix in matrices)

    def address(self) -> CLayer:
        """Where the kernel finds it; the tensors must outlive this."""
        return CLayer(
            query_key_value=self.query_key_value.address(),
            output=self.output.address(),
            gate_up=self.gate_up.address(),
            down=self.down.address(),
            attention_norm=self.attention_norm.data_ptr(),
            query_norm=pointer(self.query_norm),
            key_norm=pointer(self.key_norm),
            mlp_norm=self.mlp_norm.data_ptr(),
        )


def pointer(tensor: Tensor | None) -> int | None:
    """A tensor's address, None for none."""
    return None if tensor is None else tensor.data_ptr()


def pack_matrix(weight: Tensor, bias: Tensor | None, packing: Packing) -> PackedMatrix:
    """Pack ``(out, in)`` weights."""
    scales = shifts = None
    if packing.element is Element.BYTE:
        whole = quantize(weight)
        weight, scales = whole.values, pad_vector(whole.scales)
        shifts = pad_vector(weight.sum(dim=1, dtype=torch.int32) * 128)
    else:
        weight = weight.to(torch.bfloat16 if packing.element is Element.BFLOAT else torch.float32)
    rows, depth = weight.shape
    weight = functional.pad(weight, (0, -depth % PANEL, 0, -rows % PANEL))
    grouped = weight.view(weight.shape[0] // PANEL, PANEL, -1, packing.group).transpose(1, 2)
    panels = hugepages.zeros(tuple(grouped.shape), grouped.dtype)
    return PackedMatrix(
        panels=panels.copy_(grouped),
        scales=scales,
        shifts=shifts,
        bias=None if bias is None else pad_vector(bias.float()),
    )


def pack_layer(layer: LayerWeights[Tensor], packing: Packing) -> PackedLayer:
    """Pack a block."""
    gate_up_bias = layer.gate_up_bias
    return PackedLayer(
        query_key_value=pack_matrix(layer.qkv, layer.qkv_bias, packing),
        output=pack_matrix(layer.output, layer.output_bias, packing),
        gate_up=pack_matrix(
            interleave(layer.gate_up),
            None if gate_up_bias is None else interleave(gate_up_bias.unsqueeze(1)).squeeze(1),
            packing,
        ),
        down=pack_matrix(layer.down, layer.down_bias, packing),
        attention_norm=pad_vector(layer.attention_norm.float()),
        query_norm=None if layer.query_norm is None else layer.query_norm.float(),
        key_norm=None if layer.key_norm is None else layer.key_norm.float(),
        mlp_norm=pad_vector(layer.mlp_norm.float()),
    )


def pad_vector(values: Tensor) -> Tensor:
    """Zeros up to the next multiple of 64."""
    return functional.pad(values, (0, -values.shape[0] % PANEL)).contiguous()


def interleave(gate_up: Tensor) -> Tensor:
    """Rows of ``(out, in)`` as panels hold them: 32 of the gate, then the 32 of ``up`` they are multiplied with."""
    halves = gate_up.chunk(2)
    padded = [functional.pad(half, (0, 0, 0, -half.shape[0] % PANEL)) for half in halves]
    split = [half.view(-1, _HALF, half.shape[1]) for half in padded]
    return torch.cat(split, dim=1).reshape(-1, gate_up.shape[1])
