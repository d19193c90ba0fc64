"""The supported model families: what each adds to the common decoder.

Owns one function per family, from its ``config.json`` to a ``ModelConfig``; the decoder itself
does not know families.
"""

from dataclasses import replace

from penstock_engine.native.models.config import Fields, ModelConfig, read_common


def llama(fields: Fields) -> ModelConfig:
    """Llama 2 and 3: optional biases, optional rope scaling."""
    bias = fields.flag("attention_bias")
    return replace(
        read_common(fields, "llama"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
    )


def mistral(fields: Fields) -> ModelConfig:
    """Mistral: Llama's shape; early ones attend within a sliding window in every layer."""
    window = fields.integer("sliding_window") if fields.has("sliding_window") else None
    return replace(read_common(fields, "mistral"), sliding_window=window)


def qwen2(fields: Fields) -> ModelConfig:
    """Qwen2 and Qwen2.5: biases on query, key and value."""
    config = replace(read_common(fields, "qwen2"), qkv_bias=True)
    return replace(config, sliding_window=_qwen_window(fields, config.num_layers))


def qwen3(fields: Fields) -> ModelConfig:
    """Qwen3 (dense): queries and keys are normalised per head before rotation."""
    bias = fields.flag("attention_bias")
    config = replace(read_common(fields, "qwen3"), qkv_bias=bias, output_bias=bias, qk_norm=True)
    return replace(config, sliding_window=_qwen_window(fields, config.num_layers))


def _qwen_window(fields: Fields, num_layers: int) -> int | None:
    """The window of the layers from ``max_window_layers`` on, if the switch is on."""
    if not fields.flag("use_sliding_window") or not fields.has("sliding_window"):
        return None
    if fields.has("layer_types"):
        slides = "sliding_attention" in fields.items("layer_types")
    else:
        slides = num_layers > fields.number("max_window_layers", 0.0)
    return fields.integer("sliding_window") if slides else None
