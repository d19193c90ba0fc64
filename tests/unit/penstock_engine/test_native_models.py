"""Reading checkpoints: what is understood, what is refused, and by which name."""

import json
from pathlib import Path

import pytest
import torch

from penstock_core.errors import InvalidRequest, NotSupported, PenstockError
from penstock_engine.native.loading import draw_up, load_runner
from penstock_engine.native.models import read_config, read_eos
from penstock_engine.native.settings import NativeSettings
from penstock_engine.revision import model_revision
from penstock_testing.engines.checkpoints import write_checkpoint

MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "sliding_window": 64,
    "use_sliding_window": True,
}


def settings(model: Path, **changes: object) -> NativeSettings:
    fields: dict[str, object] = {"device": "cpu", "kv_blocks": 4} | changes
    return NativeSettings(model, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, NotSupported, "GPT2LMHeadModel"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, NotSupported, "yarn"),
        ({"partial_rotary_factor": 0.5}, NotSupported, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, NotSupported, "gelu"),
        ({"quantization_config": {"quant_method": "awq"}}, NotSupported, "quantization_config"),
        ({"num_key_value_heads": 3}, InvalidRequest, "3 key-value heads"),
        ({"hidden_size": "big"}, InvalidRequest, "hidden_size"),
        ({"vocab_size": None}, InvalidRequest, "vocab_size"),
        ({"rope_scaling": {"rope_type": "linear"}}, InvalidRequest, "factor"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    tmp_path: Path, changes: dict[str, object], error: type[PenstockError], named: str
) -> None:
    write_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))

    with pytest.raises(error, match=named):
        draw_up(settings(tmp_path))


@pytest.mark.parametrize("changes", [MISTRAL, QWEN2])
def test_a_sliding_window_is_refused_where_it_would_matter(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    write_checkpoint(tmp_path, changes)

    with pytest.raises(NotSupported, match="sliding_window"):
        draw_up(settings(tmp_path))
    assert draw_up(settings(tmp_path, max_context=64)).info.max_context_tokens == 64


def test_a_sliding_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, QWEN2 | {"use_sliding_window": False})

    assert read_config(tmp_path).sliding_window is None


def test_old_and_new_spelling_of_rope_are_one(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    old = write_checkpoint(tmp_path / "old", {"rope_scaling": scaling, "rope_theta": 5e5})
    new = write_checkpoint(
        tmp_path / "new", {"rope_parameters": {**scaling, "rope_theta": 5e5}, "rope_theta": None}
    )

    assert read_config(old).rope == read_config(new).rope


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"config\.json"):
        draw_up(settings(tmp_path))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(InvalidRequest, match="model-00002-of-00002"):
        draw_up(settings(tmp_path))


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))

    with pytest.raises(InvalidRequest, match="gate_proj"):
        load_runner(draw_up(settings(tmp_path)))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"tie_word_embeddings": True})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))

    with pytest.raises(InvalidRequest, match="lm_head"):
        load_runner(draw_up(settings(tmp_path)))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safe at all")

    with pytest.raises(InvalidRequest, match=str(tmp_path)):
        load_runner(draw_up(settings(tmp_path)))


def test_end_tokens_come_from_the_generation_config_first(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    assert read_eos(tmp_path) == {256}

    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    assert read_eos(tmp_path) == {4, 5}


def test_the_revision_names_weights_and_shape(tmp_path: Path) -> None:
    one = write_checkpoint(tmp_path / "one")
    same = write_checkpoint(tmp_path / "same")
    weights = write_checkpoint(tmp_path / "weights", seed=1)
    shape = write_checkpoint(tmp_path / "shape", {"rope_theta": 9.0})

    assert model_revision(one) == model_revision(same)
    assert len({model_revision(path) for path in (one, weights, shape)}) == 3


def test_kv_memory_decides_the_number_of_pages(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    # 2 layers, 32 tokens, keys and values, 2 heads of 12 float32
    page_bytes = 2 * 32 * 2 * 2 * 12 * 4
    budget = 10 * page_bytes + page_bytes // 2

    blueprint = draw_up(settings(tmp_path, kv_blocks=None, kv_memory_bytes=budget))

    assert blueprint.info.capacity_blocks == 10
    with pytest.raises(InvalidRequest, match="holds no page"):
        draw_up(settings(tmp_path, kv_blocks=None, kv_memory_bytes=page_bytes - 1))


def test_unknown_devices_and_types_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    with pytest.raises(InvalidRequest, match="quantum"):
        draw_up(settings(tmp_path, device="quantum"))
    with pytest.raises(NotSupported, match="meta"):
        draw_up(settings(tmp_path, device="meta"))
    with pytest.raises(NotSupported, match="int4"):
        draw_up(settings(tmp_path, dtype="int4"))


def test_a_cpu_takes_the_checkpoints_type_only_where_batches_are_exact_in_it(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path, {"torch_dtype": "bfloat16"})

    assert draw_up(settings(tmp_path, kernel="eager")).compute.dtype is torch.float32
    chosen = draw_up(settings(tmp_path)).compute
    assert chosen.dtype is (torch.bfloat16 if chosen.library else torch.float32)
    assert draw_up(settings(tmp_path, dtype="bfloat16")).compute.dtype is torch.bfloat16
