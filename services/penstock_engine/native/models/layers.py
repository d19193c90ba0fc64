"""The few computations between the big matrix products.

Owns rotary tables and their application, and the gated MLP's activation; all on flat rows,
``(tokens, ...)``. Knows neither pages nor requests.

Source: RoFormer, https://arxiv.org/abs/2104.09864; the llama3 frequencies as in
https://github.com/meta-llama/llama-models (``apply_scaling``).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from penstock_engine.native.models.config import Rope


def rope_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Angle per position of each pair, ``(head_dim / 2,)``."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3(frequencies, rope)
    return frequencies


def _llama3(frequencies: Tensor, rope: Rope) -> Tensor:
    """Long waves are slowed by the factor, short ones kept, those between blended."""
    waves = 2 * math.pi / frequencies
    low, high = rope.low_freq_factor, rope.high_freq_factor
    slowed = frequencies / rope.factor
    blend = (rope.original_context / waves - low) / (high - low)
    blended = (1 - blend) * slowed + blend * frequencies
    scaled = torch.where(waves > rope.original_context / low, slowed, blended)
    return torch.where(waves < rope.original_context / high, frequencies, scaled)


class RopeTable:
    """Cosines and signed sines for every position up to a limit."""

    def __init__(
        self, rope: Rope, head_dim: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        angles = torch.outer(torch.arange(length).float(), rope_frequencies(rope, head_dim))
        cosines, sines = angles.cos(), angles.sin()
        # The first half of a rotated pair takes minus the second half: the sign sits in the table.
        self._cosines = torch.cat([cosines, cosines], dim=1).to(device, dtype)
        self._sines = torch.cat([-sines, sines], dim=1).to(device, dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rows for ``positions``, each ``(tokens, 1, head_dim)``."""
        return self._cosines[positions].unsqueeze(1), self._sines[positions].unsqueeze(1)


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary embedding of ``(tokens, heads, head_dim)``: halves are pairs, as in Hugging Face."""
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    return torch.addcmul(heads * cosines, swapped, sines)


def gated(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``(tokens, 2 * intermediate)``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)
