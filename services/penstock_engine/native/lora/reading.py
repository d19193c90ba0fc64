"""An adapter's matrices, from PEFT's safetensors file.

Owns the names that tensors have in it and the check that they fit the model. The scale is multiplied
into the second matrix, so nobody after this knows of it. Only safetensors: loading runs no code.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from penstock_core.errors import InvalidRequest, NotFound, NotSupported
from penstock_engine.native.lora.config import FILE, LoraConfig, read_lora_config
from penstock_engine.native.lora.targets import Product, Target, targets
from penstock_engine.native.models.config import Fields, ModelConfig

_TENSORS = "adapter_model.safetensors"
_NAME = re.compile(
    r"base_model\.model\.(?P<path>model\.layers\.(?P<layer>\d+)\.(?P<module>\w+\.\w+))"
    r"\.lora_(?P<side>[AB])\.weight"
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """Adds ``(inputs @ down.T) @ up.T`` to columns from ``first`` on; scaled, float32.

    ``down`` is ``(rank, depth)``, ``up`` is ``(width, rank)``.
    """

    first: int
    down: Tensor
    up: Tensor


LoraLayer = Mapping[Product, tuple[LowRank, ...]]


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """A whole adapter; ``digest`` names what its files held."""

    digest: str
    layers: tuple[LoraLayer, ...]

    @property
    def max_rank(self) -> int:
        """The largest of its ranks."""
        parts = (part for layer in self.layers for found in layer.values() for part in found)
        return max((part.down.shape[0] for part in parts), default=0)


def find_adapters(directory: Path) -> tuple[str, ...]:
    """Names of the adapters in a directory, sorted: its folders with a configuration in them.

    Raises:
        InvalidRequest: there is no such directory.
    """
    try:
        folders = sorted(directory.iterdir())
    except OSError as error:
        message = f"cannot read the adapters in {directory}: {error.strerror}"
        raise InvalidRequest(message, field="adapters") from error
    return tuple(folder.name for folder in folders if (folder / FILE).is_file())


def read_adapter(folder: Path, config: ModelConfig, max_rank: int) -> LoraWeights:
    """Read and check an adapter.

    Raises:
        NotFound: its files are gone.
        InvalidRequest: it is malformed or does not fit the model.
        NotSupported: it needs what is not computed.
    """
    try:
        settings = (folder / FILE).read_bytes()
        data = (folder / _TENSORS).read_bytes()
    except OSError as error:
        message = f"cannot read adapter {folder.name!r}: {error.filename}: {error.strerror}"
        raise NotFound(message) from error
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise _wrong(folder, f"{_TENSORS} is no safetensors file: {error}") from error
    known = targets(config)
    try:
        lora = read_lora_config(Fields.parse(settings, FILE, field="adapter"), known, max_rank)
        layers = _Reader(lora, known, tensors).layers(config.num_layers)
    except InvalidRequest as error:
        raise _wrong(folder, error.message) from error
    except NotSupported as error:
        message = f"adapter {folder.name!r}: {error.message}"
        raise NotSupported(message, field="adapter") from error
    return LoraWeights(hashlib.sha256(settings + data).hexdigest()[:16], layers)


def _wrong(folder: Path, what: str) -> InvalidRequest:
    return InvalidRequest(f"adapter {folder.name!r}: {what}", field="adapter")


class _Reader:
    """Puts a file's tensors where they belong."""

    def __init__(
        self, config: LoraConfig, known: Mapping[str, Target], tensors: Mapping[str, Tensor]
    ) -> None:
        self._config = config
        self._known = known
        self._tensors = tensors

    def layers(self, count: int) -> tuple[LoraLayer, ...]:
        """Everything the file holds. Raises as ``read_adapter`` does."""
        if not self._tensors:
            raise InvalidRequest("it has no tensors")
        layers: list[dict[Product, tuple[LowRank, ...]]] = [{} for _ in range(count)]
        for name in sorted(self._tensors):
            found = _NAME.fullmatch(name)
            if found is None:
                raise _refusal(name)
            layer, module = int(found["layer"]), found["module"]
            if module not in self._known or layer >= count:
                raise InvalidRequest(f"{name}: the model has no such module")
            if found["side"] == "A":
                part = self._part(found["path"], self._known[module])
                product = self._known[module].product
                layers[layer][product] = (*layers[layer].get(product, ()), part)
            else:
                self._tensor(found["path"], "A")  # neither half may be alone
        return tuple(layers)

    def _part(self, path: str, target: Target) -> LowRank:
        down, up = self._tensor(path, "A"), self._tensor(path, "B")
        rank = self._config.rank_of(path)
        for side, tensor, shape in (
            ("A", down, (rank, target.depth)),
            ("B", up, (target.width, rank)),
        ):
            if tuple(tensor.shape) != shape:
                message = f"{path}.lora_{side} is {tuple(tensor.shape)} and should be {shape}"
                raise InvalidRequest(message)
        return LowRank(target.first, down, up * self._config.scale_of(path))

    def _tensor(self, path: str, side: str) -> Tensor:
        tensor = self._tensors.get(f"base_model.model.{path}.lora_{side}.weight")
        if tensor is None:
            raise InvalidRequest(f"{path} has no lora_{side}")
        if not tensor.is_floating_point():
            raise InvalidRequest(f"{path}.lora_{side} is of type {tensor.dtype}")
        return tensor.to(torch.float32)


def _refusal(name: str) -> InvalidRequest | NotSupported:
    for part, what in (
        ("lora_magnitude_vector", "DoRA"),
        ("lora_embedding", "an adapted embedding"),
        ("lm_head", "an adapted output layer"),
        ("embed_tokens", "an adapted embedding"),
        (".bias", "a bias"),
    ):
        if part in name:
            return NotSupported(f"{name}: {what} is not supported")
    return InvalidRequest(f"{name}: no such tensor belongs to an adapter of this model")
