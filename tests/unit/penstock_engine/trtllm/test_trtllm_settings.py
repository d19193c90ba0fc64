"""Settings of the TensorRT-LLM engine: what they allow, refuse and follow from one another."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from penstock_core.errors import InvalidRequest, NotFound
from penstock_core.settings import SettingsError
from penstock_engine.trtllm import rules
from penstock_engine.trtllm.checkpoint import Checkpoint, check
from penstock_engine.trtllm.settings import TrtLlmSettings

EAGLE = {"mode": "eagle3", "draft_model": "head"}
DRAFT = {"mode": "draft_target", "draft_model": "small"}
LORA = {"adapters": [{"name": "a", "path": "/a"}]}


def settings(**given: object) -> TrtLlmSettings:
    return TrtLlmSettings.model_validate({"model": "m", **given})


def checkpoint(tmp_path: Path, **config: object) -> Checkpoint:
    content = {"vocab_size": 100, "max_position_embeddings": 512, "eos_token_id": 2, **config}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return Checkpoint.read(tmp_path)


def test_a_model_alone_is_enough() -> None:
    chosen = settings()

    assert chosen.kv_cache.reuse
    assert chosen.kv_cache.tokens_per_block == 32
    assert chosen.scheduler.chunked_prefill
    assert chosen.drafting is None
    assert chosen.is_overlapped


def test_a_file_is_read_and_overridden(tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text("model: a\nmax_batch_size: 4\nkv_cache: {dtype: fp8}\n")

    chosen = TrtLlmSettings.load(file, {"model": "b"})

    assert (chosen.model, chosen.max_batch_size, chosen.kv_cache.dtype) == ("b", 4, "fp8")


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({"kv_cache": {"max_tokens": 64}}, ("fp8", 64, "ngram", 5)),
        ({"speculation": {"max_draft_tokens": 2}}, ("fp8", None, "ngram", 2)),
        ({"speculation": {"mode": "none"}}, ("fp8", None, "none", None)),
    ],
)
def test_a_section_is_overridden_field_by_field_and_another_mode_is_another_kind(
    tmp_path: Path, over: dict[str, object], expected: tuple[object, ...]
) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(
        "{model: a, kv_cache: {dtype: fp8}, speculation: {mode: ngram, max_draft_tokens: 5}}"
    )

    chosen = TrtLlmSettings.load(file, over)

    kv, kind = chosen.kv_cache, chosen.speculation
    drafts = getattr(kind, "max_draft_tokens", None)
    assert (kv.dtype, kv.max_tokens, kind.mode, drafts) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: m\nkv_cache: {tokens_per_block: 48}", "kv_cache.tokens_per_block"),
        ("model: m\nmax_bach: 3", "max_bach"),
        ("model: m\nquantization: fp8", "quantization"),
        ("model: m\nspeculation: {mode: medusa}", "speculation"),
        ("model: m\nspeculation: {mode: eagle3}", "draft_model"),
        ("- model", "a mapping"),
        ("model: [", "engine.yaml"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(text)

    with pytest.raises(SettingsError, match=told):
        TrtLlmSettings.load(file)


def test_a_missing_file_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml"):
        TrtLlmSettings.load(tmp_path / "none.yaml")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        settings().model = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "reason", "instead"),
    [
        ({"parallel": {"pipeline": 2}, "speculation": EAGLE}, "pipeline parallelism", "parallel.tensor"),
        ({"sampler": "TRTLLMSampler", "speculation": {"mode": "ngram"}}, "TRTLLMSampler", "sampler to auto"),
        ({"lora": LORA}, "LoRA does not run in CUDA graphs", "cuda_graphs to null"),
        ({"speculation": DRAFT, "scheduler": {"overlap": True}}, "overlap scheduler", "one_model"),
        (
            {"speculation": {**EAGLE, "draft_len_schedule": {1: 3, 8: 0}}},
            "draft_len_schedule reaches 0", "guided_decoding to null",
        ),
        ({"speculation": EAGLE, "cuda_graphs": {"padding": True}}, "padded CUDA graphs", "padding to false"),
        (
            {"speculation": EAGLE, "kv_cache": {"max_attention_window": [512, 4096]}},
            "attention windows of several sizes", "use ngram",
        ),
        ({"kv_cache": {"host_cache_bytes": 1}}, "event thread", "host_offload_with_events"),
        ({"kv_cache": {"host_cache_bytes": 1, "reuse": False}}, "which is off", "reuse to true"),
        (
            {"scheduler": {"context_chunking": "EQUAL_PROGRESS", "chunked_prefill": False}},
            "which are off", "chunked_prefill to true",
        ),
        (
            {"scheduler": {"chunked_prefill": False}, "max_seq_len": 9000},
            "longer than max_num_tokens", "chunked_prefill to true",
        ),
    ],
)  # fmt: skip
def test_combinations_that_cannot_run_are_refused_with_an_alternative(
    given: dict[str, object], reason: str, instead: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(**given)

    assert reason in str(refused.value)
    assert instead in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        {"parallel": {"tensor": 8, "pipeline": 1}, "speculation": EAGLE},
        {"lora": LORA, "cuda_graphs": None},
        {"speculation": {**EAGLE, "draft_len_schedule": {1: 3, 8: 0}}, "guided_decoding": None},
        {"speculation": {**EAGLE, "one_model": False}, "cuda_graphs": {"padding": True}},
        {"kv_cache": {"host_cache_bytes": 1 << 30, "host_offload_with_events": True}},
    ],
)
def test_the_alternatives_are_accepted(given: dict[str, object]) -> None:
    assert settings(**given)


@pytest.mark.parametrize(
    ("given", "doubt"),
    [
        ({"parallel": {"pipeline": 2}}, "chunked prefill with pipeline"),
        ({"lora": LORA, "cuda_graphs": None}, "LoRA with guided decoding"),
        ({"lora": LORA, "cuda_graphs": None, "speculation": {"mode": "ngram"}}, "LoRA with speculation"),
        ({"speculation": {"mode": "mtp", "num_layers": 3}}, "reject most drafts"),
        ({"speculation": EAGLE, "kv_cache": {"free_gpu_memory_fraction": 0.9}}, "run out of memory"),
        ({"speculation": {**EAGLE, "allow_advanced_sampling": False}}, "draws greedily"),
        ({"kv_cache": {"reuse": False}}, "learns of no blocks"),
    ],
)  # fmt: skip
def test_what_nobody_has_tested_is_told_and_runs(given: dict[str, object], doubt: str) -> None:
    assert any(doubt in told for told in rules.warnings(settings(**given)))


def test_plain_settings_raise_no_doubt() -> None:
    assert rules.warnings(settings(speculation=EAGLE)) == []


def test_weights_that_draft_leave_more_memory_free() -> None:
    assert settings().gpu_memory_fraction == 0.85
    assert settings(speculation={"mode": "ngram"}).gpu_memory_fraction == 0.85
    assert settings(speculation=EAGLE).gpu_memory_fraction == 0.80
    fraction = {"free_gpu_memory_fraction": 0.5}
    assert settings(speculation=EAGLE, kv_cache=fraction).gpu_memory_fraction == 0.5


@pytest.mark.parametrize(
    ("speculation", "overlaps"),
    [
        ({"mode": "none"}, True),
        ({"mode": "ngram"}, False),
        (DRAFT, False),
        (EAGLE, True),
        ({**EAGLE, "one_model": False}, False),
        ({"mode": "mtp"}, True),
        ({"mode": "auto"}, False),
    ],
)
def test_the_overlap_scheduler_follows_from_the_kind(
    speculation: dict[str, object], overlaps: bool
) -> None:
    assert settings(speculation=speculation).is_overlapped is overlaps


@pytest.mark.parametrize(
    "speculation",
    [
        {"mode": "ngram", "draft_len_schedule": {2: 4}},
        {"mode": "ngram", "draft_len_schedule": {1: 4, 8: 5}},
        {"mode": "ngram", "draft_len_schedule": {0: 4, 1: 4}},
        {"mode": "ngram", "acceptance_window": 100},
        {"mode": "auto", "max_concurrency": 4},
        {**EAGLE, "eagle_choices": [[0]]},
    ],
)
def test_speculation_that_the_package_would_refuse_or_ignore_is_refused(
    speculation: dict[str, object],
) -> None:
    with pytest.raises(ValidationError):
        settings(speculation=speculation)


def test_experts_share_the_tensor_parallel_gpus() -> None:
    assert settings(parallel={"tensor": 8, "expert": 4}).parallel.num_gpus == 8
    with pytest.raises(ValidationError, match="does not divide"):
        settings(parallel={"tensor": 8, "expert": 3})


def test_a_checkpoint_tells_what_the_engine_needs(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    found = checkpoint(tmp_path, text_config={"vocab_size": 200}, num_nextn_predict_layers=1)

    assert found.vocab_size == 200
    assert found.eos_token_ids == {2, 3, 5}
    assert found.num_mtp_layers == 1


def test_a_directory_that_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json"):
        Checkpoint.read(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InvalidRequest):
        Checkpoint.read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="vocab_size"):
        Checkpoint.read(tmp_path)


@pytest.mark.parametrize(
    ("config", "given", "told"),
    [
        ({}, {"speculation": {"mode": "mtp"}}, "no layers that predict"),
        ({"model_type": "gpt_oss"}, {"speculation": EAGLE}, "leaks special tokens"),
        ({}, {"max_seq_len": 1024}, "more than the 512"),
        ({}, {"scheduler": {"chunked_prefill": False}, "max_num_tokens": 256}, "caps the prompt"),
    ],
)
def test_what_this_checkpoint_cannot_do_is_refused(
    tmp_path: Path, config: dict[str, object], given: dict[str, object], told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        check(settings(**given), checkpoint(tmp_path, **config))


def test_a_draft_model_must_have_the_same_vocabulary(tmp_path: Path) -> None:
    small, model = tmp_path / "small", tmp_path / "model"
    small.mkdir()
    model.mkdir()
    checkpoint(small, vocab_size=99)
    kind = {"mode": "draft_target", "draft_model": str(small)}

    with pytest.raises(InvalidRequest, match="99"):
        check(settings(speculation=kind), checkpoint(model))


def test_a_checkpoint_with_such_layers_may_use_them(tmp_path: Path) -> None:
    check(settings(speculation={"mode": "mtp"}), checkpoint(tmp_path, num_nextn_predict_layers=1))


def test_a_drafter_that_is_a_directory_must_be_there(tmp_path: Path) -> None:
    gone = {"mode": "eagle3", "draft_model": str(tmp_path / "gone")}
    with pytest.raises(SettingsError, match=r"draft_model: there is no directory .*/gone"):
        check(settings(speculation=gone), checkpoint(tmp_path))
    check(settings(speculation={**gone, "draft_model": "someone/head"}), checkpoint(tmp_path))


def test_adapters_must_be_there_and_fit(tmp_path: Path) -> None:
    def with_adapter(path: Path, rank: int) -> TrtLlmSettings:
        lora = {"adapters": [{"name": "a", "path": str(path)}], "max_rank": rank}
        return settings(lora=lora, cuda_graphs=None)

    adapter = tmp_path / "adapter"
    with pytest.raises(SettingsError, match="no directory"):
        check(with_adapter(adapter, 16), checkpoint(tmp_path))
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    with pytest.raises(SettingsError, match=r"rank 16: set lora\.max_rank"):
        check(with_adapter(adapter, 8), checkpoint(tmp_path))
    check(with_adapter(adapter, 16), checkpoint(tmp_path))
