"""Weights from safetensors, packed the way the decoder multiplies them.

Owns the names tensors have in a checkpoint, their conversion to the compute type and the
fusion of what reads the same input (q, k, v; gate, up). Only safetensors: loading runs no code.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from penstock_core.errors import InvalidRequest
from penstock_engine.native.models.config import ModelConfig
from penstock_engine.native.models.quantization import Matrix, Prepare, num_bytes

Matrix_co = TypeVar("Matrix_co", bound=Matrix, covariant=True)


@dataclass(frozen=True, slots=True)
class LayerWeights(Generic[Matrix_co]):
    """One block. Matrices are ``(out, in)``; ``qkv`` and ``gate_up`` are stacked along ``out``."""

    attention_norm: Tensor
    qkv: Matrix_co
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Matrix_co
    output_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Matrix_co
    gate_up_bias: Tensor | None
    down: Matrix_co
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A whole decoder; ``head`` is the embedding itself if they are tied."""

    embedding: Tensor
    layers: tuple[LayerWeights[Matrix], ...]
    norm: Tensor
    head: Matrix

    @property
    def num_bytes(self) -> int:
        """Memory of the matrices; a tied embedding counts once."""
        own_head = 0 if self.head is self.embedding else num_bytes(self.head)
        return self.embedding.nbytes + own_head + sum(map(_layer_bytes, self.layers))


class TensorFile(Protocol):
    """What is used of a safetensors file."""

    def keys(self) -> list[str]:
        """Names of its tensors."""
        ...

    def get_tensor(self, name: str) -> Tensor:
        """One of them."""
        ...


class Checkpoint:
    """Tensors of a directory by name, over one or several safetensors files."""

    def __init__(self, model: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        paths = shard_paths(model)
        try:
            files: list[TensorFile] = [safe_open(path, framework="pt") for path in paths]
        except SafetensorError as error:
            raise InvalidRequest(f"{model}: {error}", field="model") from error
        self._where = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        self._model = model

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._where.clear()

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor in the compute type. Raises InvalidRequest if it is missing or misshapen."""
        short = name.removeprefix("model.")  # as checkpoints without a head have it
        name = short if name not in self._where and short in self._where else name
        if name not in self._where:
            raise InvalidRequest(f"{self._model} has no tensor {name}", field="model")
        tensor = self._where[name].get_tensor(name)
        if tuple(tensor.shape) != shape:
            message = f"{name} in {self._model} is {tuple(tensor.shape)}, its config says {shape}"
            raise InvalidRequest(message, field="model")
        # A copy: what is mapped from the file would change under us if the file did.
        return tensor.to(self._device, self._dtype, copy=True)


def shard_paths(model: Path) -> list[Path]:
    """The safetensors files of a directory: those its index names, else the single one."""
    index = model / "model.safetensors.index.json"
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        paths = [model / name for name in sorted(names)]
    else:
        paths = [model / "model.safetensors"]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise InvalidRequest(f"{model} lacks {', '.join(missing)}", field="model")
    return paths


class WeightSource:
    """A checkpoint's weights part by part, so that whoever packs them holds few of them twice."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._table = (config.vocab_size, config.hidden_size)

    def embedding(self) -> Tensor:
        """``(vocab, hidden)``."""
        return self._checkpoint.tensor("model.embed_tokens.weight", self._table)

    def layer(self, index: int) -> LayerWeights[Tensor]:
        """One block, counted from 0."""
        return _layer(self._checkpoint, self._config, index)

    def norm(self) -> Tensor:
        """The last norm's weights."""
        return self._checkpoint.tensor("model.norm.weight", (self._config.hidden_size,))

    def head(self, embedding: Tensor) -> Tensor:
        """``(vocab, hidden)``; the embedding itself if they are tied."""
        tied = self._config.tied_embeddings
        return embedding if tied else self._checkpoint.tensor("lm_head.weight", self._table)


def load_weights(source: WeightSource, num_layers: int, prepare: Prepare) -> DecoderWeights:
    """Read a whole checkpoint, each matrix as ``prepare`` makes it.

    Raises:
        InvalidRequest: it does not fit its config.
    """
    embedding = source.embedding()
    layers = (source.layer(index) for index in range(num_layers))
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(_prepared(layer, prepare) for layer in layers),
        norm=source.norm(),
        head=prepare(source.head(embedding)),
    )


def _prepared(layer: LayerWeights[Tensor], prepare: Prepare) -> LayerWeights[Matrix]:
    return LayerWeights(
        attention_norm=layer.attention_norm,
        qkv=prepare(layer.qkv),
        qkv_bias=layer.qkv_bias,
        query_norm=layer.query_norm,
        key_norm=layer.key_norm,
        output=prepare(layer.output),
        output_bias=layer.output_bias,
        mlp_norm=layer.mlp_norm,
        gate_up=prepare(layer.gate_up),
        gate_up_bias=layer.gate_up_bias,
        down=prepare(layer.down),
        down_bias=layer.down_bias,
    )


def _layer_bytes(layer: LayerWeights[Matrix]) -> int:
    return sum(map(num_bytes, (layer.qkv, layer.output, layer.gate_up, layer.down)))


def _layer(checkpoint: Checkpoint, config: ModelConfig, index: int) -> LayerWeights[Tensor]:
    prefix = f"model.layers.{index}."
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def matrix(name: str, rows: int, columns: int) -> Tensor:
        return checkpoint.tensor(f"{prefix}{name}.weight", (rows, columns))

    def vector(name: str, size: int) -> Tensor:
        return checkpoint.tensor(f"{prefix}{name}", (size,))

    def biases(present: bool, parts: dict[str, int]) -> Tensor | None:
        return torch.cat([vector(f"{n}.bias", s) for n, s in parts.items()]) if present else None

    qkv = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
    gate_up = {"mlp.gate_proj": inner, "mlp.up_proj": inner}
    norms = [
        vector(f"self_attn.{n}_norm.weight", config.head_dim) if config.qk_norm else None
        for n in "qk"
    ]
    return LayerWeights(
        attention_norm=vector("input_layernorm.weight", hidden),
        qkv=torch.cat([matrix(name, size, hidden) for name, size in qkv.items()]),
        qkv_bias=biases(config.qkv_bias, qkv),
        query_norm=norms[0],
        key_norm=norms[1],
        output=matrix("self_attn.o_proj", hidden, queries),
        output_bias=biases(config.output_bias, {"self_attn.o_proj": hidden}),
        mlp_norm=vector("post_attention_layernorm.weight", hidden),
        gate_up=torch.cat([matrix(name, size, hidden) for name, size in gate_up.items()]),
        gate_up_bias=biases(config.mlp_bias, gate_up),
        down=matrix("mlp.down_proj", hidden, inner),
        down_bias=biases(config.mlp_bias, {"mlp.down_proj": hidden}),
    )
