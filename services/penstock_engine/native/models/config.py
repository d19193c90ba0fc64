"""What a checkpoint's ``config.json`` says, as the facts a decoder is built from.

Owns the reading of Hugging Face's keys (old and new spelling) and the refusal of whatever this
engine would compute wrongly. Knows no tensors.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock_core.errors import InvalidRequest, NotSupported

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: ``kind`` is default, linear or llama3; the rest as in the config."""

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a decoder-only transformer with RMSNorm, rotary positions and a SiLU-gated MLP.

    ``sliding_window`` is the window of some layer if it has one: contexts within it are exact.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    max_context: int
    tied_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    dtype: str = "float32"


class Fields:
    """Typed look at a JSON object of a checkpoint; names the key when a value is no good."""

    def __init__(self, values: Json, where: str, field: str = "model") -> None:
        """``field`` is what a refusal names as the culprit."""
        self._values = values
        self._where = where
        self._field = field

    @classmethod
    def load(cls, path: Path) -> "Fields":
        """Read a file. Raises InvalidRequest if there is none or it is no JSON object."""
        try:
            text = path.read_bytes()
        except OSError as error:
            raise InvalidRequest(f"cannot read {path}: {error}", field="model") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: bytes, where: str, field: str = "model") -> "Fields":
        """A file's content. Raises InvalidRequest if it is no JSON object."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InvalidRequest(f"cannot read {where}: {error}", field=field) from error
        if not isinstance(values, dict):
            raise InvalidRequest(f"{where} holds no JSON object", field=field)
        return cls(values, where, field)

    def keys(self) -> tuple[str, ...]:
        """What it has."""
        return tuple(self._values)

    def has(self, key: str) -> bool:
        """Whether a key is there and not null."""
        return self._values.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._bad(key, value, "a positive whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._bad(key, value, "a number")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """A truth value."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._bad(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._bad(key, value, "a string")
        return value

    def items(self, key: str) -> tuple[object, ...]:
        """A list's items; a lone value counts as a list of one, a missing one as none."""
        value = self._values.get(key)
        if value is None:
            return ()
        return tuple(value) if isinstance(value, list) else (value,)

    def nested(self, key: str) -> "Fields":
        """An object within; empty if missing."""
        value = self._values.get(key) or {}
        if not isinstance(value, dict):
            raise self._bad(key, value, "an object")
        return Fields(value, f"{self._where}:{key}", self._field)

    def _value(self, key: str, default: object) -> object:
        value = self._values.get(key)
        if value is None and default is None:
            raise InvalidRequest(f"{self._where} lacks {key}", field=self._field)
        return default if value is None else value

    def _bad(self, key: str, value: object, wanted: str) -> InvalidRequest:
        message = f"{self._where}: {key} is {value!r} and should be {wanted}"
        return InvalidRequest(message, field=self._field)


def read_rope(fields: Fields, max_context: int) -> Rope:
    """Rotary parameters, from ``rope_parameters`` or the older ``rope_theta`` and ``rope_scaling``."""
    scaling = fields.nested("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    theta = scaling.number("rope_theta", fields.number("rope_theta", 10_000.0))
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind not in {"default", "linear", "llama3"}:
        raise NotSupported(f"rope type {kind!r} is not supported (default, linear, llama3 are)")
    if scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0)) != 1.0:
        raise NotSupported("partial_rotary_factor other than 1 is not supported")
    return Rope(
        theta=theta,
        kind=kind,
        factor=scaling.number("factor", None if kind != "default" else 1.0),
        low_freq_factor=scaling.number("low_freq_factor", 1.0),
        high_freq_factor=scaling.number("high_freq_factor", 4.0),
        original_context=scaling.integer("original_max_position_embeddings", max_context),
    )


def read_common(fields: Fields, architecture: str) -> ModelConfig:
    """What all supported families share. Raises NotSupported for what would be computed wrongly."""
    if fields.has("quantization_config"):
        raise NotSupported("quantization_config: quantized checkpoints are not supported")
    activation = fields.text("hidden_act", "silu")
    if activation not in {"silu", "swish"}:
        raise NotSupported(f"hidden_act {activation!r} is not supported (silu is)")
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        message = f"{num_heads} attention heads cannot share {num_kv_heads} key-value heads evenly"
        raise InvalidRequest(message, field="model")
    hidden_size = fields.integer("hidden_size")
    max_context = fields.integer("max_position_embeddings")
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=fields.integer("head_dim", hidden_size // num_heads),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=read_rope(fields, max_context),
        max_context=max_context,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        dtype=fields.text("dtype", fields.text("torch_dtype", "float32")),
    )
