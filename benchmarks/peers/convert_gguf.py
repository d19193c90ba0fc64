"""A Llama checkpoint in safetensors to a GGUF file that llama.cpp loads.

    python convert_gguf.py CHECKPOINT FILE {bf16,q8_0}

Runs where the package ``gguf`` is installed. Query and key rows are permuted because llama.cpp rotates
neighbouring dimensions where Hugging Face rotates halves.
"""

import json
import sys
from pathlib import Path

import gguf
from safetensors.torch import load_file
from torch import Tensor

_TYPES = {
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def convert(checkpoint: Path, target: Path, kind: str) -> None:
    """Write ``target``, by a rename."""
    config = json.loads((checkpoint / "config.json").read_text())
    matrix_type, file_type = _TYPES[kind]
    beside = target.with_suffix(".part")
    writer = gguf.GGUFWriter(beside, "llama")
    _describe(writer, config)
    writer.add_file_type(file_type)
    _add_vocabulary(writer, json.loads((checkpoint / "tokenizer.json").read_text()))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, value in load_file(checkpoint / "model.safetensors").items():
        known = names.get_name(name, try_suffixes=(".weight",))
        data = _permuted(name, value, config).float().numpy()
        if data.ndim == 1:
            writer.add_tensor(known, data)
        else:
            writer.add_tensor(known, gguf.quants.quantize(data, matrix_type), raw_dtype=matrix_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    beside.replace(target)


def _describe(writer: gguf.GGUFWriter, config: dict[str, int | float]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_vocabulary(writer: gguf.GGUFWriter, spec: dict) -> None:
    tokens = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in spec["model"]["merges"]]
    special = {token["content"] for token in spec["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _permuted(name: str, value: Tensor, config: dict[str, int]) -> Tensor:
    if name.endswith("q_proj.weight"):
        heads = config["num_attention_heads"]
    elif name.endswith("k_proj.weight"):
        heads = config["num_key_value_heads"]
    else:
        return value
    halves = value.view(heads, 2, value.shape[0] // heads // 2, value.shape[1])
    return halves.transpose(1, 2).reshape(value.shape).contiguous()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
