"""The tensors behind the KV pages.

Owns their layout: ``(layers, pages, block, 2, kv_heads, head_dim)``. Keys and values of a token
lie side by side, so a step writes both with one scatter and a gather reads both with one
index. Knows page numbers, not who holds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock_engine.native.models import hugepages
from penstock_engine.native.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class KvShape:
    """How much a page holds."""

    num_layers: int
    block_tokens: int
    num_kv_heads: int
    head_dim: int
    element_bytes: int

    @classmethod
    def of(cls, config: ModelConfig, block_tokens: int, element_bytes: int) -> "KvShape":
        """The pages a model needs."""
        heads, dim = config.num_kv_heads, config.head_dim
        return cls(config.num_layers, block_tokens, heads, dim, element_bytes)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        per_token = 2 * self.num_kv_heads * self.head_dim * self.element_bytes
        return self.num_layers * self.block_tokens * per_token


class KvTensors:
    """Keys and values of all pages."""

    def __init__(
        self, shape: KvShape, num_pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_tokens = shape.block_tokens
        heads, dim = shape.num_kv_heads, shape.head_dim
        size = (shape.num_layers, num_pages, shape.block_tokens, 2, heads, dim)
        # Zeros, not empty: masked positions of a half-filled page are multiplied by zero, and
        # zero times what happened to lie in memory may be NaN.
        if device.type == "cpu":
            self._pages = hugepages.zeros(size, dtype)
        else:
            self._pages = torch.zeros(size, dtype=dtype, device=device)
        self._slots = self._pages.view(
            shape.num_layers, num_pages * shape.block_tokens, 2, heads, dim
        )

    @property
    def pages(self) -> Tensor:
        """All of it, ``(layers, pages, block, 2, kv_heads, head_dim)``, without gaps."""
        return self._pages

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        """Store ``(tokens, 2, kv_heads, head_dim)`` at flat slots: page times block plus offset."""
        self._slots[layer].index_copy_(0, slots, keys_values)

    def gather(self, layer: int, pages: Tensor, num_sequences: int) -> Tensor:
        """Contents of ``pages``, as ``(sequences, tokens, 2, kv_heads, head_dim)``.

        ``pages`` is flat: each sequence's table, padded to the same number of pages.
        """
        found = self._pages[layer].index_select(0, pages)
        return found.view(num_sequences, -1, *found.shape[2:])

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages, (from, to); all are read before any is written."""
        if copies:
            sources, targets = zip(*copies, strict=True)
            self._pages[:, list(targets)] = self._pages[:, list(sources)]
