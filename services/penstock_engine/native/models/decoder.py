"""The decoder: token ids in, logits out, over a flat batch of ragged chunks.

Owns the order of computations that all supported families share. Knows tensors and attention
groups, neither pages' owners nor sampling.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from penstock_engine.native.attention import AttentionGroup, PagedAttention
from penstock_engine.native.kv_tensors import KvTensors
from penstock_engine.native.layers import RopeTable, gated, rotate
from penstock_engine.native.models.config import ModelConfig
from penstock_engine.native.quantization import Matrix, add_linear, linear
from penstock_engine.native.weights import DecoderWeights, LayerWeights


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's rows.

    Attributes:
        tokens: ids, ``(rows,)``.
        positions: of each row in its sequence, ``(rows,)``.
        slots: flat KV slot each row is written to, ``(rows,)``.
        groups: attention groups that cover the rows.
        logit_rows: rows whose logits are wanted, ``(logits,)``.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    groups: tuple[AttentionGroup, ...]
    logit_rows: Tensor


class Decoder:
    """RMSNorm, rotary grouped-query attention and gated MLP, repeated."""

    def __init__(
        self, config: ModelConfig, weights: DecoderWeights, rope: RopeTable, kv: KvTensors
    ) -> None:
        self._config = config
        self._weights = weights
        self._rope = rope
        self._kv = kv
        self._attention = PagedAttention(config, kv)
        self._width = (config.hidden_size,)

    def forward(self, batch: Batch) -> Tensor:
        """Compute all rows into the KV pages; float32 logits ``(logits, vocab)`` of those wanted."""
        hidden = functional.embedding(batch.tokens, self._weights.embedding)
        rope = self._rope.at(batch.positions)
        for index, layer in enumerate(self._weights.layers):
            hidden = self._layer(index, layer, hidden, batch, rope)
        hidden = hidden[batch.logit_rows]
        hidden = self._norm(hidden, self._weights.norm)
        return linear(hidden, self._weights.head).float()

    def _layer(
        self,
        index: int,
        layer: LayerWeights[Matrix],
        hidden: Tensor,
        batch: Batch,
        rope: tuple[Tensor, Tensor],
    ) -> Tensor:
        rows = linear(self._norm(hidden, layer.attention_norm), layer.qkv, layer.qkv_bias)
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
        rows = linear(self._norm(hidden, layer.mlp_norm), layer.gate_up, layer.gate_up_bias)
        return add_linear(hidden, gated(rows), layer.down, layer.down_bias)

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
