"""Random tiny checkpoints in Hugging Face's layout, for engines that need real weights.

Weights are scaled so that logits spread: with the usual initialisation every prompt would
continue alike, and a wrong engine would look right.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from penstock_engine.native.models import FAMILIES
from penstock_engine.native.models.config import Fields, ModelConfig

BASE: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 256,
    "torch_dtype": "float32",
}


def write_checkpoint(
    path: Path, changes: Mapping[str, object] | None = None, *, seed: int = 0, shards: int = 1
) -> Path:
    """Write ``config.json`` (``BASE`` with ``changes``) and random weights; returns the directory."""
    path.mkdir(parents=True, exist_ok=True)
    values = {**BASE, **(changes or {})}
    (path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    architectures = values["architectures"]
    assert isinstance(architectures, list)
    config = FAMILIES[architectures[0]](Fields(values, "config"))
    tensors = _random_tensors(config, torch.Generator().manual_seed(seed))
    if shards == 1:
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return path
    names = sorted(tensors)
    where: dict[str, str] = {}
    for index in range(shards):
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[index::shards]}
        save_file(part, path / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    index_text = json.dumps({"metadata": {}, "weight_map": where})
    (path / "model.safetensors.index.json").write_text(index_text, encoding="utf-8")
    return path


def _random_tensors(config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    tensors = {"model.embed_tokens.weight": normal(config.vocab_size, hidden, scale=1.0)}
    if not config.tied_embeddings:
        tensors["lm_head.weight"] = normal(config.vocab_size, hidden, scale=hidden**-0.5)
    tensors["model.norm.weight"] = 1 + normal(hidden, scale=0.1)
    linears = {
        "self_attn.q_proj": (queries, hidden, config.qkv_bias),
        "self_attn.k_proj": (keys, hidden, config.qkv_bias),
        "self_attn.v_proj": (keys, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, queries, config.output_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.qk_norm:
        norms |= {"self_attn.q_norm": config.head_dim, "self_attn.k_norm": config.head_dim}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns, has_bias) in linears.items():
            scale = 1.5 * columns**-0.5
            tensors[f"{prefix}{name}.weight"] = normal(rows, columns, scale=scale)
            if has_bias:
                tensors[f"{prefix}{name}.bias"] = normal(rows, scale=0.3)
        for name, size in norms.items():
            tensors[f"{prefix}{name}.weight"] = 1 + normal(size, scale=0.1)
    return tensors
