"""Adapters in the layout the kernel reads.

Owns that layout: first matrices with sixteen ranks side by side, second ones cut into half panels of
which each names the ranks it depends on, so that queries cost nothing for the ranks of keys. See
``kernels/lora.h``.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from penstock_engine.native.fused.library import CAdapter, CLowRank
from penstock_engine.native.fused.packing import PANEL, interleave
from penstock_engine.native.lora.reading import LoraWeights, LowRank
from penstock_engine.native.lora.targets import Product, columns
from penstock_engine.native.models.config import ModelConfig

_LANES = 16
_HALF = PANEL // 2


@dataclass(frozen=True, slots=True)
class PackedProduct:
    """What an adapter adds to one product; see ``PenstockLowRank``."""

    down: Tensor
    up: Tensor
    halves: Tensor

    @property
    def ranks(self) -> int:
        """Of all parts together, padded."""
        return self.down.shape[0] * _LANES

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        return self.down.nbytes + self.up.nbytes + self.halves.nbytes

    def describe(self) -> CLowRank:
        """Where the kernel finds it; the tensors must outlive this."""
        return CLowRank(
            down=self.down.data_ptr(),
            up=self.up.data_ptr(),
            halves=self.halves.data_ptr(),
            ranks=self.ranks,
        )


class PackedAdapter:
    """A loaded adapter, and where the kernel finds it."""

    def __init__(self, layers: Sequence[dict[Product, PackedProduct]]) -> None:
        self._layers = layers
        made = [layer.get(product) for layer in layers for product in Product]
        products = [CLowRank() if one is None else one.describe() for one in made]
        ranks = max((one.ranks for one in made if one is not None), default=0)
        self._adapter = CAdapter((CLowRank * len(products))(*products), ranks)
        self.num_bytes = sum(one.num_bytes for one in made if one is not None)

    @property
    def address(self) -> int:
        """Of the ``PenstockAdapter``, as long as this lives."""
        return ctypes.addressof(self._adapter)


class PackedShelf:
    """Loaded adapters by name, packed for the kernel."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.adapters: dict[str, PackedAdapter] = {}
        self._config = config
        self._dtype = dtype

    def put(self, name: str, weights: LoraWeights) -> int:
        """Keep an adapter; returns the memory it takes."""
        packed = PackedAdapter(
            [
                {product: self._packed(product, parts) for product, parts in layer.items()}
                for layer in weights.layers
            ]
        )
        self.adapters[name] = packed
        return packed.num_bytes

    def drop(self, name: str) -> None:
        """Forget an adapter that no running request uses."""
        self.adapters.pop(name, None)

    def _packed(self, product: Product, parts: Sequence[LowRank]) -> PackedProduct:
        down = torch.cat([part.down for part in parts])
        down = functional.pad(down, (0, -down.shape[1] % PANEL, 0, -down.shape[0] % _LANES))
        blocks = down.view(down.shape[0] // _LANES, _LANES, -1).transpose(1, 2)
        up = torch.zeros(columns(self._config, product), down.shape[0])
        used, first = torch.zeros_like(up), 0
        for part in parts:
            width, rank = part.up.shape
            place = slice(part.first, part.first + width), slice(first, first + rank)
            up[place], used[place] = part.up, 1.0
            first += rank
        rows, halves = _cut(_panels(product, up), _panels(product, used) > 0)
        return PackedProduct(
            blocks.to(self._dtype).contiguous(), rows.to(self._dtype).contiguous(), halves
        )


def _panels(product: Product, matrix: Tensor) -> Tensor:
    """``(columns, ranks)`` as half panels, ``(halves, 32, ranks)``."""
    if product is Product.GATE_UP:
        matrix = interleave(matrix)
    matrix = functional.pad(matrix, (0, 0, 0, -matrix.shape[0] % PANEL))
    return matrix.view(-1, _HALF, matrix.shape[1])


def _cut(matrix: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(n, 32)`` of those ranks that count in each half; where, ``(halves, 3)``."""
    counts = used.any(dim=1).int()
    first = counts.argmax(dim=1)
    end = (counts.shape[1] - counts.flip(1).argmax(dim=1)) * counts.amax(dim=1)
    halves = torch.zeros(matrix.shape[0], 3, dtype=torch.int32)
    rows, start = [matrix.new_zeros(0, _HALF)], 0
    for low, high in sorted(set(zip(first.tolist(), end.tolist(), strict=True))):
        mine = ((first == low) & (end == high)).nonzero().squeeze(1)
        count = max(high - low, 0)
        rows.append(matrix[mine, :, low : low + count].transpose(1, 2).reshape(-1, _HALF))
        halves[mine, 0], halves[mine, 1] = low, count
        halves[mine, 2] = start + torch.arange(len(mine), dtype=torch.int32) * count
        start += len(mine) * count
    return torch.cat(rows), halves
