"""Checkpoints this engine can run, by the architecture their ``config.json`` names."""

from collections.abc import Callable, Mapping
from pathlib import Path

from penstock_core.errors import NotSupported
from penstock_engine.api import Pooling
from penstock_engine.native.models import families
from penstock_engine.native.models.config import Fields, ModelConfig

FAMILIES: Mapping[str, Callable[[Fields], ModelConfig]] = {
    "LlamaForCausalLM": families.llama,
    "MistralForCausalLM": families.mistral,
    "Qwen2ForCausalLM": families.qwen2,
    "Qwen3ForCausalLM": families.qwen3,
}


def read_config(model: Path) -> ModelConfig:
    """Shape of the checkpoint in a directory.

    Raises:
        InvalidRequest: there is no ``config.json``, or a value in it makes no sense.
        NotSupported: it asks for something this engine does not compute; the message names it.
    """
    fields = Fields.load(model / "config.json")
    names = fields.items("architectures")
    for name in names:
        if isinstance(name, str) and name in FAMILIES:
            return FAMILIES[name](fields)
    asked = ", ".join(map(str, names)) or "none named"
    raise NotSupported(f"architecture {asked} is not supported ({', '.join(FAMILIES)} are)")


def read_eos(model: Path) -> frozenset[int]:
    """End-of-sequence tokens: the generation config's if it has any, else the model config's."""
    generation = model / "generation_config.json"
    for path in (generation, model / "config.json"):
        if path.exists():
            ids = Fields.load(path).items("eos_token_id")
            if ids:
                return frozenset(i for i in ids if isinstance(i, int))
    return frozenset()


def read_pooling(model: Path) -> Pooling:
    """What its makers pooled with, as sentence-transformers writes it down; else the last token.

    Raises:
        NotSupported: it is neither the last token nor the mean.
    """
    path = model / "1_Pooling" / "config.json"
    if not path.exists():
        return Pooling.LAST
    fields = Fields.load(path)
    if fields.flag("pooling_mode_mean_tokens"):
        return Pooling.MEAN
    if fields.flag("pooling_mode_lasttoken"):
        return Pooling.LAST
    raise NotSupported(f"{path}: of poolings only the last token and the mean are supported")
