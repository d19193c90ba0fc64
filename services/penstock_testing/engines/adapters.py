"""Random LoRA adapters as PEFT saves them, and the same ones merged into a checkpoint.

The same seed gives the same adapter. Weights are large enough that answers change.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock_engine.native.lora.targets import targets
from penstock_engine.native.models import read_config

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path,
    model: Path,
    *,
    rank: int = 4,
    modules: Sequence[str] = MODULES,
    seed: int = 1,
    changes: Mapping[str, object] | None = None,
) -> Path:
    """Write an adapter of some modules of a model's layers; ``changes`` to its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(model),
        "r": rank, "lora_alpha": 2 * rank, "use_rslora": False, "use_dora": False,
        "bias": "none", "fan_in_fan_out": False, "modules_to_save": None,
        "target_modules": list(modules), "rank_pattern": {}, "alpha_pattern": {},
    } | dict(changes or {})  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(values), encoding="utf-8")
    save_file(_tensors(model, rank, modules, seed), folder / "adapter_model.safetensors")
    return folder


def _tensors(model: Path, rank: int, modules: Sequence[str], seed: int) -> dict[str, Tensor]:
    config, generator = read_config(model), torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for layer in range(config.num_layers):
        for name, target in targets(config).items():
            if name.rpartition(".")[2] not in modules:
                continue
            prefix = f"base_model.model.model.layers.{layer}.{name}.lora_"
            down = torch.randn(rank, target.depth, generator=generator) * target.depth**-0.5
            up = torch.randn(target.width, rank, generator=generator) * 0.3 * rank**-0.5
            made |= {f"{prefix}A.weight": down, f"{prefix}B.weight": up}
    return made


def merge_adapter(model: Path, adapter: Path, merged: Path, scale: float = 2.0) -> Path:
    """Write the checkpoint that the adapter makes of a model: ``W + scale * B @ A``."""
    merged.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        if file.suffix == ".json":
            (merged / file.name).write_bytes(file.read_bytes())
    weights = load_file(model / "model.safetensors")
    low = load_file(adapter / "adapter_model.safetensors")
    for name, down in low.items():
        if ".lora_A." in name:
            path = name.removeprefix("base_model.model.").replace(".lora_A", "")
            up = low[name.replace(".lora_A.", ".lora_B.")]
            weights[path] = weights[path] + scale * (up.double() @ down.double()).float()
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    return merged
