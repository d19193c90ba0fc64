"""Two Llama checkpoints with random weights, for timing engines against each other.

    python benchmarks/make_checkpoints.py FOLDER

Makes ``FOLDER/S`` and ``FOLDER/M``: bfloat16 safetensors, config and a byte-level BPE tokenizer that
every engine loads. Weights are drawn from a seed, so everybody's checkpoints are the same.
"""

import argparse
import json
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

VOCABULARY = 8192
CONTEXT = 4096
END = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama model's widths; heads have 64 dimensions in both."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return self.hidden // self.heads


SHAPES = {
    "S": Shape(hidden=384, layers=8, heads=6, kv_heads=6, intermediate=1024),
    "M": Shape(hidden=768, layers=12, heads=12, kv_heads=4, intermediate=3072),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, shape in SHAPES.items():
        print(ensure(folder / name, shape))
    return 0


def ensure(folder: Path, shape: Shape) -> Path:
    """Make a checkpoint unless it is there; its config is written last."""
    config = folder / "config.json"
    if not config.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights(shape), folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer(folder)
        config.write_text(json.dumps(describe(shape), indent=2))
    return folder


def weights(shape: Shape) -> dict[str, Tensor]:
    """Parameters by their names in Hugging Face's checkpoints."""
    draw = torch.Generator().manual_seed(shape.hidden)
    sizes = dict(_sizes(shape))
    return {
        name: torch.ones(size, dtype=torch.bfloat16)
        if len(size) == 1
        else (torch.randn(size, generator=draw) * size[1] ** -0.5).to(torch.bfloat16)
        for name, size in sizes.items()
    }


def _sizes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = shape.hidden, shape.intermediate
    keys = shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    yield "lm_head.weight", (VOCABULARY, hidden)
    yield "model.norm.weight", (hidden,)
    for i in range(shape.layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (hidden, hidden)
        yield f"{layer}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{layer}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.up_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)


def describe(shape: Shape) -> dict[str, object]:
    """The contents of ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": CONTEXT,
        "mlp_bias": False,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
    }


def tokenizer(folder: Path) -> None:
    """Learn a vocabulary from the standard library's sources."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    made.train_from_iterator((path.read_text(errors="replace") for path in sources), trainer)
    if made.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"the standard library gave {made.get_vocab_size()} tokens only")
    made.save(str(folder / "tokenizer.json"))
    words = {"bos_token": END, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, **words})
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(words))
    (folder / "generation_config.json").write_text('{"bos_token_id": 0, "eos_token_id": 0}')


if __name__ == "__main__":
    sys.exit(main())
