"""Writing a model as a Hugging Face directory, each file put in place by a rename."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from demo_model.net import Llama, ModelConfig
from demo_model.vocabulary import END

# The model has seen nothing but Python, so a conversation is laid out as Python: what the system
# and the user say becomes comments, and what the assistant said stands as the code it was.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ message['content'] + '\\n' }}"
    "{%- else -%}"
    "{%- for line in message['content'].strip().split('\\n') -%}"
    "{{ ('# ' + line).rstrip() + '\\n' }}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
)

_INNER = {
    "q_proj": "self_attn.",
    "k_proj": "self_attn.",
    "v_proj": "self_attn.",
    "o_proj": "self_attn.",
    "gate_proj": "mlp.",
    "up_proj": "mlp.",
    "down_proj": "mlp.",
}


def hub_name(name: str) -> str:
    """Return Hugging Face's name of one of our parameters."""
    if not name.startswith("layers."):
        return f"model.{name}" + ("" if name.endswith(".weight") else ".weight")
    _, index, rest = name.split(".", 2)
    if rest in _INNER:
        rest = f"{_INNER[rest]}{rest}.weight"
    return f"model.layers.{index}.{rest}"


def hub_config(config: ModelConfig, end: int) -> dict[str, Any]:
    """Return the contents of ``config.json``.

    Args:
        config: The model's shape.
        end: Id of the separator.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "eos_token_id": end,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": False,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and rename it there, so that no reader sees half of it.

    Args:
        path: Where the file goes.
        write: Writes it at the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    write(beside)
    beside.chmod(0o644)
    os.replace(beside, path)


def put_text(path: Path, text: str) -> None:
    """Write a text file by a rename."""
    put(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def put_json(path: Path, value: object) -> None:
    """Write a JSON file by a rename."""
    put_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def export_model(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write everything but the card.

    Args:
        model: The model; its weights are rounded to bf16.
        tokenizer: Its tokeniser.
        folder: The directory to fill.
    """
    end = tokenizer.token_to_id(END)
    if end is None:
        raise ValueError(f"the tokeniser has no {END}")
    weights = {
        hub_name(name): value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.named_parameters()
    }
    put(folder / "model.safetensors", lambda p: save_file(weights, p, metadata={"format": "pt"}))
    put(folder / "tokenizer.json", lambda p: tokenizer.save(str(p)))
    put_json(folder / "config.json", hub_config(model.config, end))
    put_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": end, "eos_token_id": end},
    )
    put_json(folder / "special_tokens_map.json", {"bos_token": END, "eos_token": END})
    put_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "add_eos_token": False,
            "add_prefix_space": False,
            "bos_token": END,
            "eos_token": END,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.config.max_position_embeddings,
            "added_tokens_decoder": {
                str(end): {
                    "content": END,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
            },
            "chat_template": CHAT_TEMPLATE,
        },
    )


def import_model(folder: Path) -> Llama:
    """Read back an exported model, with the rounded weights others will run.

    Args:
        folder: The directory ``export_model`` filled.
    """
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields = ModelConfig.__dataclass_fields__
    model = Llama(ModelConfig(**{key: raw[key] for key in fields}))
    weights: dict[str, Tensor] = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[hub_name(name)].float())
    return model
