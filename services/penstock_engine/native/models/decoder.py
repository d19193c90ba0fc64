"""The decoder: token ids in, logits out, over a flat batch of ragged chunks.

Owns the order of computations that all supported families share. Knows tensors and attention
groups, neither pages' owners nor sampling.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from penstock_engine.native.lora.eager import AdaptedRows, adapt
from penstock_engine.native.lora.targets import Product
from penstock_engine.native.models.attention import AttentionGroup, PagedAttention
from penstock_engine.native.models.config import ModelConfig
from penstock_engine.native.models.kv_tensors import KvTensors
from penstock_engine.native.models.layers import RopeTable, gated, rotate
from penstock_engine.native.models.paged import PagedKernel, attend_paged
from penstock_engine.native.models.quantization import Matrix, add_linear, linear
from penstock_engine.native.models.weights import DecoderWeights, LayerWeights


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's rows.

    Attributes:
        tokens: ids, ``(rows,)``.
        positions: of each row in its sequence, ``(rows,)``.
        slots: flat KV slot each row is written to, ``(rows,)``.
        groups: attention groups that cover the rows.
        logit_rows: rows whose logits are wanted, ``(logits,)``.
        adapted: rows that an adapter changes.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    groups: tuple[AttentionGroup, ...]
    logit_rows: Tensor
    adapted: tuple[AdaptedRows, ...] = ()


class Decoder:
    """RMSNorm, rotary grouped-query attention and gated MLP, repeated."""

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        rope: RopeTable,
        kv: KvTensors,
        kernel: PagedKernel = attend_paged,
    ) -> None:
        self._config = config
        self._weights = weights
        self._rope = rope
        self._kv = kv
        self._attention = PagedAttention(config, kv, kernel)
        self._width = (config.hidden_size,)

    def forward(self, batch: Batch) -> Tensor:
        """Compute all rows into the KV pages; float32 logits ``(logits, vocab)`` of those wanted."""
        return linear(self.hidden(batch), self._weights.head).float()

    def hidden(self, batch: Batch) -> Tensor:
        """The same, without the head: ``(logits, hidden size)`` of the wanted rows, normed."""
        hidden = functional.embedding(batch.tokens, self._weights.embedding)
        rope = self._rope.at(batch.positions)
        for index, layer in enumerate(self._weights.layers):
            hidden = self._layer(index, layer, hidden, batch, rope)
        return self._norm(hidden[batch.logit_rows], self._weights.norm)

    def _layer(
        self,
        index: int,
        layer: LayerWeights[Matrix],
        hidden: Tensor,
        batch: Batch,
        rope: tuple[Tensor, Tensor],
    ) -> Tensor:
        normed = self._norm(hidden, layer.attention_norm)
        rows = linear(normed, layer.qkv, layer.qkv_bias)
        adapt(batch.adapted, (index, Product.QUERY_KEY_VALUE), normed, rows)
        queries, new = self._heads(layer, rows, rope)
        self._kv.write(index, batch.slots, new)
        parts = [
            self._attention.attend(
                index, queries[group.start : group.stop], new[group.start : group.stop], group
            )
            for group in batch.groups
        ]
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        hidden = add_linear(hidden, attended, layer.output, layer.output_bias)
        adapt(batch.adapted, (index, Product.OUTPUT), attended, hidden)
        normed = self._norm(hidden, layer.mlp_norm)
        rows = linear(normed, layer.gate_up, layer.gate_up_bias)
        adapt(batch.adapted, (index, Product.GATE_UP), normed, rows)
        inner = gated(rows)
        hidden = add_linear(hidden, inner, layer.down, layer.down_bias)
        adapt(batch.adapted, (index, Product.DOWN), inner, hidden)
        return hidden

    def _heads(
        self, layer: LayerWeights[Matrix], rows: Tensor, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Rotated queries ``(rows, heads, dim)``; rotated keys with values ``(rows, 2, kv, dim)``."""
        config = self._config
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        rows = rows.view(-1, heads + 2 * kv_heads, dim)
        turning = rows[:, : heads + kv_heads]
        if layer.query_norm is not None and layer.key_norm is not None:
            queries = self._head_norm(turning[:, :heads], layer.query_norm)
            keys = self._head_norm(turning[:, heads:], layer.key_norm)
            turning = torch.cat([queries, keys], dim=1)
        turned = rotate(turning, *rope)
        rows[:, heads : heads + kv_heads] = turned[:, heads:]
        return turned[:, :heads], rows[:, heads:].view(-1, 2, kv_heads, dim)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, self._width, weight, self._config.norm_eps)

    def _head_norm(self, heads: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(heads, (self._config.head_dim,), weight, self._config.norm_eps)
