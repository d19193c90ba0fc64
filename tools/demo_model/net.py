"""A small Llama that computes exactly what Hugging Face's ``LlamaForCausalLM`` computes.

Master weights stay in fp32. Matrix products run in ``compute_dtype`` (bf16 where the processor
multiplies it faster) while the residual stream, the norms and the loss stay in fp32, which is
what makes a few thousand bf16 steps as stable as fp32 ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; the names follow Hugging Face's ``LlamaConfig``."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


class Norm(nn.Module):
    """RMS norm, computed in fp32 whatever comes in."""

    def __init__(self, size: int, eps: float) -> None:
        """Create a norm over the last dimension.

        Args:
            size: Width of that dimension.
            eps: Added to the mean square.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` scaled to unit mean square, times the weight."""
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def matrix(rows: int, columns: int, std: float) -> nn.Parameter:
    """Return a fresh weight matrix.

    Args:
        rows: Output width.
        columns: Input width.
        std: Standard deviation of the entries; zero gives a matrix of zeros.
    """
    return nn.Parameter(torch.randn(rows, columns) * std)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions the Hugging Face way (first half against second half)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, config: ModelConfig) -> None:
        """Create the layer; the two output projections start at zero.

        Args:
            config: The model's shape.
        """
        super().__init__()
        self.config = config
        width, inner = config.hidden_size, config.intermediate_size
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        std = width**-0.5
        self.input_layernorm = Norm(width, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(width, config.rms_norm_eps)
        self.q_proj = matrix(queries, width, std)
        self.k_proj = matrix(keys, width, std)
        self.v_proj = matrix(keys, width, std)
        self.o_proj = matrix(width, queries, 0.0)
        self.gate_proj = matrix(inner, width, std)
        self.up_proj = matrix(inner, width, std)
        self.down_proj = matrix(width, inner, 0.0)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        """Run the layer.

        Args:
            x: Residual stream, fp32, batch by time by width.
            cos: Cosines of the positions, fp32.
            sin: Sines of the positions, fp32.
            dtype: What the matrix products run in.

        Returns:
            The residual stream after the layer.
        """
        c = self.config
        batch, time, _ = x.shape
        heads, kv_heads, dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        weight = torch.cat((self.q_proj, self.k_proj, self.v_proj)).to(dtype)
        qkv = F.linear(self.input_layernorm(x).to(dtype), weight)
        split = qkv.view(batch, time, heads + 2 * kv_heads, dim).transpose(1, 2)
        q, k, v = split.tensor_split((heads, heads + kv_heads), dim=1)
        q, k = rotate(q.float(), cos, sin).to(dtype), rotate(k.float(), cos, sin).to(dtype)
        group = heads // kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, time, heads * dim)
        x = x + F.linear(mixed, self.o_proj.to(dtype)).float()
        weight = torch.cat((self.gate_proj, self.up_proj)).to(dtype)
        gate, up = F.linear(self.post_attention_layernorm(x).to(dtype), weight).chunk(2, dim=-1)
        inner = (F.silu(gate.float()) * up.float()).to(dtype)
        return x + F.linear(inner, self.down_proj.to(dtype)).float()


class Llama(nn.Module):
    """The whole model, with the output layer tied to the embeddings."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        """Create a model with fresh weights.

        Args:
            config: The model's shape.
            compute_dtype: What the matrix products run in.
        """
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.embed_tokens = matrix(config.vocab_size, config.hidden_size, 0.02)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        positions = torch.arange(config.max_position_embeddings).float()
        angles = torch.outer(positions, config.rope_theta**-exponents).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the normalised last hidden states, fp32, batch by time by width."""
        time = tokens.shape[1]
        cos, sin = self.cos[:time], self.sin[:time]
        x = F.embedding(tokens, self.embed_tokens).float()
        for layer in self.layers:
            x = layer(x, cos, sin, self.compute_dtype)
        out: Tensor = self.norm(x)
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits in ``compute_dtype``, batch by time by vocabulary."""
        dtype = self.compute_dtype
        return F.linear(self.hidden(tokens).to(dtype), self.embed_tokens.to(dtype))

    def parameter_count(self) -> int:
        """Return how many weights there are, the tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of each token after the first of its row.

    Args:
        model: Gives the logits.
        tokens: Batch by time plus one.
    """
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def distillation_loss(
    model: nn.Module, tokens: Tensor, teacher_logits: Tensor, teacher_share: float
) -> Tensor:
    """Return the draft's loss: its divergence from the teacher mixed with cross-entropy.

    Acceptance in speculative decoding depends on how near the draft's distribution is to the
    big model's, so most of the weight lies on the divergence.

    Args:
        model: The student.
        tokens: Batch by time plus one.
        teacher_logits: The teacher's logits at the same positions.
        teacher_share: Weight of the divergence, from 0 to 1.
    """
    student = model(tokens[:, :-1]).flatten(0, 1).float().log_softmax(-1)
    teacher = teacher_logits.flatten(0, 1).float().softmax(-1)
    divergence = -(teacher * student).sum(-1).mean()
    truth = F.nll_loss(student, tokens[:, 1:].flatten())
    loss: Tensor = teacher_share * divergence + (1 - teacher_share) * truth
    return loss
