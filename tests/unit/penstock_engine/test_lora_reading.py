"""What an adapter's files may say, and how its refusals read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock_core.errors import InvalidRequest, NotFound, NotSupported
from penstock_engine.native.lora.reading import LoraWeights, find_adapters, read_adapter
from penstock_engine.native.lora.targets import Product
from penstock_engine.native.models import read_config
from penstock_testing.engines.adapters import write_adapter
from penstock_testing.engines.checkpoints import write_checkpoint

Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def read(model: Path, adapter: Path, max_rank: int = 16) -> LoraWeights:
    return read_adapter(adapter, read_config(model), max_rank)


def test_every_module_lands_in_its_product(model: Path, tmp_path: Path) -> None:
    weights = read(model, write_adapter(tmp_path / "a", model))

    assert weights.max_rank == 4
    assert len(weights.layers) == 2
    for layer in weights.layers:
        widths = {
            product: sorted((part.first, len(part.up)) for part in layer[product])
            for product in Product
        }
        assert widths == {
            Product.QUERY_KEY_VALUE: [(0, 48), (48, 24), (72, 24)],
            Product.OUTPUT: [(0, 48)],
            Product.GATE_UP: [(0, 96), (96, 96)],
            Product.DOWN: [(0, 48)],
        }


def scale_of(model: Path, folder: Path, **changes: object) -> float:
    """What the last layer's query matrix was multiplied with."""
    write_adapter(folder, model, modules=["q_proj"], changes=changes)
    raw = load_file(folder / "adapter_model.safetensors")[f"{Q_PROJ}.lora_B.weight"]
    part = read(model, folder).layers[1][Product.QUERY_KEY_VALUE][0]
    return float((part.up / raw).mean())


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"lora_alpha": 6}, 1.5),
        ({"lora_alpha": 6, "use_rslora": True}, 3.0),
        ({"lora_alpha": 6, "alpha_pattern": {"q_proj": 12}}, 3.0),
        ({"lora_alpha": 6, "alpha_pattern": {"model.layers.1.self_attn.q_proj": 2.0}}, 0.5),
        ({"lora_alpha": 6, "alpha_pattern": {"layers.0.*q_proj": 2.0, "proj": 3}}, 1.5),
        ({"r": 2, "lora_alpha": 6, "rank_pattern": {"q_proj": 4}}, 1.5),
    ],
)
def test_scales_are_as_peft_has_them(
    model: Path, tmp_path: Path, changes: dict[str, object], scale: float
) -> None:
    assert scale_of(model, tmp_path / "a", **changes) == pytest.approx(scale)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"peft_type": "IA3"}, NotSupported, "'a': adapters of type IA3"),
        ({"use_dora": True}, NotSupported, "use_dora"),
        ({"bias": "lora_only"}, NotSupported, "biases"),
        ({"modules_to_save": ["lm_head"]}, NotSupported, "modules_to_save"),
        ({"target_modules": ["q_proj", "lm_head"]}, InvalidRequest, "'lm_head' is unknown"),
        ({"target_modules": ["c_attn"]}, InvalidRequest, "'c_attn' is unknown"),
        ({"r": 17}, InvalidRequest, "rank of 17 is more than 16"),
        ({"rank_pattern": {"q_proj": 99}}, InvalidRequest, "rank of 99"),
        ({"rank_pattern": {"(": 2}}, InvalidRequest, "no regular expression"),
        ({"r": "four"}, InvalidRequest, "r is 'four'"),
        ({"r": 5}, InvalidRequest, r"lora_A is \(4, .*\) and should be \(5, "),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    model: Path, tmp_path: Path, changes: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        read(model, write_adapter(tmp_path / "a", model, changes=changes))


def _without_b(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{Q_PROJ}.lora_B.weight"]


def _without_a(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{Q_PROJ}.lora_A.weight"]


def _another_width(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q_PROJ}.lora_B.weight"] = torch.zeros(50, 4)


def _a_layer_more(tensors: dict[str, Tensor]) -> None:
    tensors[Q_PROJ.replace("layers.1", "layers.2") + ".lora_A.weight"] = torch.zeros(4, 48)


def _whole_numbers(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q_PROJ}.lora_A.weight"] = torch.zeros(4, 48, dtype=torch.int32)


def _magnitudes(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q_PROJ}.lora_magnitude_vector"] = torch.zeros(48)


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (_without_b, InvalidRequest, "q_proj has no lora_B"),
        (_without_a, InvalidRequest, "q_proj has no lora_A"),
        (_another_width, InvalidRequest, r"lora_B is \(50, 4\) and should be \(48, 4\)"),
        (_a_layer_more, InvalidRequest, "layers.2.*no such module"),
        (_whole_numbers, InvalidRequest, "int32"),
        (_magnitudes, NotSupported, "DoRA"),
        (dict.clear, InvalidRequest, "no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    model: Path,
    tmp_path: Path,
    spoil: Callable[[dict[str, Tensor]], None],
    error: type[Exception],
    said: str,
) -> None:
    file = write_adapter(tmp_path / "a", model) / "adapter_model.safetensors"
    tensors = load_file(file)
    spoil(tensors)
    save_file(tensors, file)

    with pytest.raises(error, match=said):
        read(model, file.parent)


def test_missing_and_broken_files_are_told_apart(model: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", model)
    (folder / "adapter_model.safetensors").write_bytes(b"\x80pickle")
    with pytest.raises(InvalidRequest, match="no safetensors file"):
        read(model, folder)
    (folder / "adapter_config.json").write_text(json.dumps([1]))
    write_adapter(tmp_path / "b", model)
    (folder / "adapter_model.safetensors").write_bytes(
        (tmp_path / "b" / "adapter_model.safetensors").read_bytes()
    )
    with pytest.raises(InvalidRequest, match="no JSON object"):
        read(model, folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(NotFound, match=r"adapter 'a'.*No such file"):
        read(model, folder)


def test_folders_with_a_configuration_are_adapters(model: Path, tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_adapter(tmp_path / name, model)
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").touch()

    assert find_adapters(tmp_path) == ("a", "b")
    with pytest.raises(InvalidRequest, match="No such file"):
        find_adapters(tmp_path / "nowhere")
