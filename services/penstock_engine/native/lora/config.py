"""What an adapter's ``adapter_config.json`` says, as far as it changes a number.

Owns PEFT's keys, the scaling of each module and the refusal of what would be computed wrongly. Knows
no tensors.

Source: LoRA, https://arxiv.org/abs/2106.09685; rank-stabilised scaling,
https://arxiv.org/abs/2312.03732; the keys as in PEFT's ``LoraConfig``.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from penstock_core.errors import InvalidRequest, NotSupported
from penstock_engine.native.models.config import Fields

FILE = "adapter_config.json"
_ANOTHER_METHOD = (
    *("use_dora", "lora_bias", "use_qalora", "use_bdlora", "monteclora_config"),
    *("modules_to_save", "layer_replication", "trainable_token_indices"),
    *("target_parameters", "alora_invocation_tokens", "arrow_config"),
)
"""Keys that, set, ask for more than two low-rank matrices a module."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Ranks and scales of an adapter; patterns name modules by the end of their path."""

    rank: int
    alpha: float
    is_rank_stabilised: bool
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        """Rank of the module at this path, such as ``model.layers.0.mlp.up_proj``."""
        return int(_matching(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What the low-rank product is multiplied with."""
        rank, alpha = self.rank_of(module), _matching(self.alpha_pattern, module, self.alpha)
        return alpha / (rank**0.5 if self.is_rank_stabilised else rank)


def read_lora_config(fields: Fields, modules: Collection[str], max_rank: int) -> LoraConfig:
    """Read it; ``modules`` are the names that can be adapted.

    Raises:
        InvalidRequest: a value makes no sense, a module is unknown or a rank is above ``max_rank``.
        NotSupported: the adapter needs what is not computed.
    """
    kind = fields.text("peft_type")
    if kind != "LORA":
        raise NotSupported(f"adapters of type {kind} are not supported (LORA is)", field="adapter")
    for key in _ANOTHER_METHOD:
        if any(fields.items(key)):
            raise NotSupported(f"an adapter with {key} is not supported", field="adapter")
    if fields.text("bias", "none") != "none":
        raise NotSupported("an adapter with biases is not supported", field="adapter")
    if fields.flag("fan_in_fan_out"):
        raise NotSupported("an adapter with fan_in_fan_out is not supported", field="adapter")
    _check_modules(fields, modules)
    config = LoraConfig(
        rank=fields.integer("r"),
        alpha=fields.number("lora_alpha"),
        is_rank_stabilised=fields.flag("use_rslora"),
        rank_pattern=_pattern(fields, "rank_pattern"),
        alpha_pattern=_pattern(fields, "alpha_pattern"),
    )
    ranks = (config.rank, *config.rank_pattern.values())
    if max(ranks) > max_rank or min(ranks) < 1:
        message = f"a rank of {max(ranks):g} is more than {max_rank}, or one is below 1"
        raise InvalidRequest(message, field="adapter")
    return config


def _check_modules(fields: Fields, modules: Collection[str]) -> None:
    """A single string may be a pattern, or "all-linear": what it meant, the tensors tell."""
    named = fields.items("target_modules")
    known = {module.rpartition(".")[2] for module in modules}
    if len(named) == 1 and not str(named[0]).replace(".", "_").isidentifier():
        return
    for name in named:
        if not isinstance(name, str) or name.rpartition(".")[2] not in known:
            wanted = ", ".join(sorted(known))
            message = f"target module {name!r} is unknown ({wanted} are known)"
            raise InvalidRequest(message, field="adapter")


def _pattern(fields: Fields, key: str) -> Mapping[str, float]:
    inner = fields.nested(key)
    return {name: inner.number(name) for name in inner.keys()}  # noqa: SIM118


def _matching(pattern: Mapping[str, float], module: str, default: float) -> float:
    for name, value in pattern.items():
        try:
            if re.fullmatch(rf"(.*\.)?({name})", module):
                return value
        except re.error as error:
            message = f"pattern {name!r} is no regular expression: {error}"
            raise InvalidRequest(message, field="adapter") from error
    return default
