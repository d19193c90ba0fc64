"""Adapters by PyTorch's operators, on any device: rows of one adapter share two small products.

Owns the matrices as these products read them and the addition itself. Knows neither files nor
requests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from penstock_engine.native.lora.reading import LoraWeights, LowRank
from penstock_engine.native.lora.targets import Product


@dataclass(frozen=True, slots=True)
class _Part:
    """``up`` takes columns ``ranks`` of the narrow product to columns ``columns`` of the wide one."""

    ranks: slice
    columns: slice
    up: Tensor


@dataclass(frozen=True, slots=True)
class _Adapted:
    """One product: all its parts' first matrices as one, ``(ranks, depth)``."""

    down: Tensor
    parts: tuple[_Part, ...]


@dataclass(frozen=True, slots=True)
class EagerAdapter:
    """A loaded adapter, by layer."""

    layers: tuple[Mapping[Product, _Adapted], ...]


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """Rows of a batch that share an adapter; ``rows`` is None if all do."""

    adapter: EagerAdapter
    rows: Tensor | None


class EagerShelf:
    """Loaded adapters by name, in the type and on the device that computes."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.adapters: dict[str, EagerAdapter] = {}
        self._dtype = dtype
        self._device = device

    def put(self, name: str, weights: LoraWeights) -> int:
        """Keep an adapter; returns the memory it takes."""
        made = EagerAdapter(
            tuple(
                {product: self._adapted(parts) for product, parts in layer.items()}
                for layer in weights.layers
            )
        )
        self.adapters[name] = made
        return sum(_num_bytes(found) for layer in made.layers for found in layer.values())

    def drop(self, name: str) -> None:
        """Forget an adapter that no running request uses."""
        self.adapters.pop(name, None)

    def _adapted(self, parts: Sequence[LowRank]) -> _Adapted:
        made, first = [], 0
        for part in parts:
            width, rank = part.up.shape
            up = part.up.to(self._device, self._dtype)
            columns = slice(part.first, part.first + width)
            made.append(_Part(slice(first, first + rank), columns, up))
            first += rank
        down = torch.cat([part.down for part in parts]).to(self._device, self._dtype)
        return _Adapted(down, tuple(made))


def adapt(
    adapted: Sequence[AdaptedRows], place: tuple[int, Product], inputs: Tensor, outputs: Tensor
) -> None:
    """Add to ``outputs`` what the rows' adapters make of ``inputs`` at (layer, product)."""
    layer, product = place
    for group in adapted:
        found = group.adapter.layers[layer].get(product)
        if found is None:
            continue
        mine = inputs if group.rows is None else inputs[group.rows]
        narrow = functional.linear(mine, found.down)
        for part in found.parts:
            wide = functional.linear(narrow[:, part.ranks], part.up)
            target = outputs[:, part.columns]
            if group.rows is None:
                target.add_(wide)
            else:
                target.index_add_(0, group.rows, wide)


def _num_bytes(adapted: _Adapted) -> int:
    return adapted.down.nbytes + sum(part.up.nbytes for part in adapted.parts)
