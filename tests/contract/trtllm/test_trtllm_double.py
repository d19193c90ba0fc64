"""The double keeps to the contract, and what we pass to it is in there, pinned."""

import asyncio
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from penstock_engine.trtllm.checkpoint import Checkpoint
from penstock_engine.trtllm.llm_args import Build, llm_arguments
from penstock_engine.trtllm.package import load_package
from penstock_engine.trtllm.settings import TrtLlmSettings
from penstock_testing.engines.trtllm import double_and_engine

EAGLE: dict[str, object] = {"mode": "eagle3", "draft_model": "head"}
EVERYTHING: list[dict[str, object]] = [
    {},
    {"speculation": {"mode": "ngram", "max_concurrency": 8, "draft_len_schedule": {1: 4, 8: 2}}},
    {"speculation": {"mode": "draft_target", "draft_model": "small"}},
    {"speculation": {**EAGLE, "acceptance_window": 9, "acceptance_length_threshold": 1.5}},
    {"speculation": {**EAGLE, "one_model": False, "layers_to_capture": [1, 2]}},
    {"speculation": {"mode": "mtp", "num_layers": 2}},
    {"speculation": {"mode": "auto"}, "sampler": "TorchSampler"},
    {"cuda_graphs": None, "lora": {"adapters": [{"name": "a", "path": "/"}], "target_modules": ["q"]}},
    {"cuda_graphs": {"batch_sizes": [1, 2, 4], "padding": True}, "guided_decoding": None},
    {"cuda_graphs": {"max_batch_size": 16}, "guided_decoding": "llguidance"},
    {
        "parallel": {"tensor": 4, "pipeline": 2, "expert": 2, "attention_dp": True, "gpus_per_node": 8},
        "scheduler": {"capacity": "MAX_UTILIZATION", "context_chunking": "EQUAL_PROGRESS"},
        "kv_cache": {"dtype": "fp8", "max_tokens": 4096, "max_attention_window": [64]},
        "otlp_traces_endpoint": "http://localhost:4317",
    },
    {"kv_cache": {"host_cache_bytes": 1 << 20, "host_offload_with_events": True}},
    {"kv_cache": {"reuse": False}},
]  # fmt: skip


def contract(module: ModuleType) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module("tensorrt_llm._contract").CONTRACT
    assert module.__version__ == found["version"]
    return found


@pytest.mark.parametrize("given", EVERYTHING, ids=str)
def test_every_configuration_is_accepted(
    tensorrt_llm: ModuleType, model: Path, given: dict[str, object]
) -> None:
    settings = TrtLlmSettings.model_validate({"model": str(model), **given})

    llm: Any = load_package().llm(llm_arguments(settings, Checkpoint.read(model)))

    assert llm.args.enable_chunked_prefill
    assert llm.args.kv_cache_config.tokens_per_block == 32
    assert llm.args.kv_cache_config.enable_block_reuse is settings.kv_cache.reuse


@pytest.mark.parametrize("given", EVERYTHING, ids=str)
def test_every_name_we_pass_is_pinned_to_this_release(
    tensorrt_llm: ModuleType, model: Path, given: dict[str, object]
) -> None:
    classes = contract(tensorrt_llm)["classes"]
    settings = TrtLlmSettings.model_validate({"model": str(model), **given})
    unpinned = {"LoraConfig"}  # as the release's documentation uses it

    def check(build: Build) -> None:
        if build.name not in unpinned:
            assert classes[build.name]["pinned_1_2_1"]
            assert set(build.arguments) <= set(classes[build.name]["fields"])
        for inner in build.arguments.values():
            if isinstance(inner, Build):
                check(inner)

    check(Build("TorchLlmArgs", llm_arguments(settings, Checkpoint.read(model))))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"quant_config": None}, ValueError),
        ({"kv_cache_config": {"event_buffer": 3}}, ValueError),
        ({"tensor_parallel_size": "many"}, ValueError),
        ({"tensor_parallel_size": 16}, RuntimeError),
        ({"speculative_config": {"max_draft_len": 3}}, ValueError),
        ({"stream_interval": 0}, ValueError),
    ],
)
def test_llm_refuses_what_the_package_would(
    tensorrt_llm: ModuleType, arguments: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        tensorrt_llm.LLM("m", **arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("NGramDecodingConfig", {"max_draft_len": 3}),
        ("DraftTargetDecodingConfig", {"max_draft_len": 3}),
        ("MedusaDecodingConfig", {"max_draft_len": 3}),
        ("LookaheadDecodingConfig", {}),
    ],
)
def test_speculation_with_invalid_defaults_or_of_the_other_backend_is_refused(
    tensorrt_llm: ModuleType, name: str, arguments: dict[str, object]
) -> None:
    known = importlib.import_module("tensorrt_llm._classes").KNOWN
    with pytest.raises((AssertionError, ValueError)):
        tensorrt_llm.LLM("m", speculative_config=known[name](**arguments))


def test_kinds_have_their_own_validators_and_their_bases(tensorrt_llm: ModuleType) -> None:
    llmapi = importlib.import_module("tensorrt_llm.llmapi")
    with pytest.raises(ValueError, match="max_draft_len"):
        llmapi.EagleDecodingConfig()
    with pytest.raises(ValueError, match="draft_len_schedule"):
        llmapi.NGramDecodingConfig(max_draft_len=3, draft_len_schedule={1: 2})
    with pytest.raises(ValueError, match="decoding_type"):
        llmapi.NGramDecodingConfig(decoding_type="NGram")
    with pytest.raises(TypeError):
        llmapi.KvCacheConfig(free_gpu_memory_fraction=None)


def test_every_method_has_the_contracts_signature(tensorrt_llm: ModuleType) -> None:
    results = importlib.import_module("tensorrt_llm._results")
    signature = importlib.import_module("tensorrt_llm._contract").signature
    homes = {"LLM": tensorrt_llm.LLM}
    homes |= {name: getattr(results, name) for name in ("RequestOutput", "IterationResult")}

    for name, spec in contract(tensorrt_llm)["methods"].items():
        home, method = name.split(".")
        found = getattr(homes[home], method)  # all of them are there
        if "parameters" in spec:
            assert inspect.signature(found) == signature(name), name


def test_classes_are_made_of_the_contracts_fields_types_and_defaults(
    tensorrt_llm: ModuleType,
) -> None:
    known = importlib.import_module("tensorrt_llm._classes").KNOWN
    for name, spec in contract(tensorrt_llm)["classes"].items():
        if not spec.get("kind", "").startswith("pydantic"):
            continue
        fields = known[name].model_fields
        assert set(fields) == set(spec["fields"]), name
        for key, field in spec["fields"].items():
            assert fields[key].is_required() is bool(field.get("required")), (name, key)
            if "default" in field and not field.get("required"):
                assert fields[key].default == field["default"], (name, key)


def test_sampling_parameters_are_mutated_and_checked(tensorrt_llm: ModuleType) -> None:
    params = tensorrt_llm.SamplingParams(end_id=2)
    llm = tensorrt_llm.LLM("m", return_perf_metrics=True, skip_tokenizer_init=True)
    llm.generate([1, 2], params)

    assert params.pad_id == 2
    assert params.return_perf_metrics
    assert params._stream_interval == 1
    for wrong in ({"temperature": "hot"}, {"end_id": 1.5}, {"stop_token_ids": 3}):
        with pytest.raises(TypeError):
            tensorrt_llm.SamplingParams(**wrong)
    for bad in ({"top_p": 2.0}, {"n": 2}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="bad sampling"):
            tensorrt_llm.SamplingParams(**bad)
    with pytest.raises(ValueError, match="end_id"):
        llm.generate([1], tensorrt_llm.SamplingParams())
    with pytest.raises(RuntimeError, match="not processed"):
        llm.generate([1], tensorrt_llm.SamplingParams(end_id=2, stop="x"))


@pytest.mark.parametrize("unknown", ["priority", "request_id"])
def test_generate_async_knows_no_further_arguments(tensorrt_llm: ModuleType, unknown: str) -> None:
    llm = tensorrt_llm.LLM("m")
    with pytest.raises(TypeError, match=unknown):
        llm.generate_async([1], **{unknown: 1})
    with pytest.raises(TypeError):
        llm.generate_async([1], tensorrt_llm.SamplingParams(end_id=1), cache_salt=7)
    with pytest.raises(TypeError):
        llm.generate_async(1.5)
    llm.shutdown()
    with pytest.raises(RuntimeError, match="shutting down"):
        llm.generate_async([1])


async def test_an_output_is_one_object_that_grows_and_shrinks(tensorrt_llm: ModuleType) -> None:
    llm = tensorrt_llm.LLM("m")
    llm.steering.script = lambda before: 50 + len(before)
    llm.steering.late_stop = True
    params = tensorrt_llm.SamplingParams(end_id=1, stop_token_ids=[54], max_tokens=9)
    output = llm.generate_async([7, 7], params, streaming=True)
    seen = []
    async for step in output:
        assert step is output
        seen.append(list(output.outputs[0].token_ids))
    llm.shutdown()

    assert seen == [[52], [52, 53], [52, 53, 54], [52, 53]]
    assert output.outputs[0].stop_reason == 54
    assert output.outputs[0].token_ids_diff == []


async def test_an_error_is_raised_and_leaves_the_output_unfinished(
    tensorrt_llm: ModuleType,
) -> None:
    llm = tensorrt_llm.LLM("m")
    llm.steering.fails.append(RuntimeError("broken"))
    output = llm.generate_async([7], tensorrt_llm.SamplingParams(end_id=1), streaming=True)
    with pytest.raises(RuntimeError, match="broken"):
        await anext(output)

    assert not output.finished
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await anext(output)
    llm.shutdown()


async def test_what_kills_the_engine_shuts_it_down(tensorrt_llm: ModuleType) -> None:
    llm = tensorrt_llm.LLM("m")
    llm.steering.fails.append(RuntimeError("broken"))
    output = llm.generate_async([7], tensorrt_llm.SamplingParams(end_id=1), streaming=True)
    with pytest.raises(RuntimeError, match="broken"):
        await anext(output)

    with pytest.raises(AssertionError, match="executor"):
        output.abort()
    with pytest.raises(RuntimeError, match="shutting down"):
        llm.generate_async([7], tensorrt_llm.SamplingParams(end_id=1))
    llm.shutdown()


def test_a_timeout_of_a_result_is_ignored(tensorrt_llm: ModuleType) -> None:
    llm = tensorrt_llm.LLM("m")
    output = llm.generate_async([7], tensorrt_llm.SamplingParams(end_id=1, max_tokens=40))

    assert len(output.result(timeout=0).outputs[0].token_ids) == 40


def test_an_output_made_without_a_loop_cannot_be_awaited(tensorrt_llm: ModuleType) -> None:
    llm = tensorrt_llm.LLM("m")
    output = llm.generate_async([7], tensorrt_llm.SamplingParams(end_id=1), streaming=True)

    with pytest.raises(AssertionError, match="event loop"):
        asyncio.run(_first(output))


async def _first(output: Any) -> None:
    await anext(output)


async def test_nobody_aborts_but_the_caller(tensorrt_llm: ModuleType) -> None:
    llm = tensorrt_llm.LLM("m")
    params = tensorrt_llm.SamplingParams(end_id=1, max_tokens=50)
    output = llm.generate_async([7], params, streaming=True)
    await anext(output)
    for _ in range(500):
        await asyncio.sleep(0)

    assert len(llm.steering.requests[0].said) == 50
    llm.shutdown()


async def test_event_streams_drain_end_when_idle_and_stay_ended_until_a_request(
    tensorrt_llm: ModuleType,
) -> None:
    kv = importlib.import_module("tensorrt_llm.llmapi").KvCacheConfig(event_buffer_max_size=99)
    llm = tensorrt_llm.LLM("m", kv_cache_config=kv)

    async def read() -> list[Any]:
        return [event async for event in llm.get_kv_cache_events_async(timeout=0.01)]

    async def ask(first: int) -> None:
        params = tensorrt_llm.SamplingParams(end_id=1, max_tokens=2)
        await llm.generate_async([first, *range(70)], params, streaming=True)

    before = await read()
    await ask(1)
    first = await read()
    await asyncio.sleep(0)
    idle = await read()
    await ask(2)
    second = await read()
    llm.shutdown()

    assert (before, idle) == ([], [])
    assert [event["data"]["type"] for event in first] == ["created", "stored", "stored"]
    ids = [event["event_id"] for event in [*first, *second]]
    assert ids == list(range(len(ids)))
    assert all(block["block_hash"] > 1 << 63 for block in first[1]["data"]["blocks"])
    assert len(second[-1]["data"]["blocks"][-1]["tokens"]) < 32  # a partial block


def test_events_look_as_the_contract_says(tensorrt_llm: ModuleType, model: Path) -> None:
    spec = contract(tensorrt_llm)["kv_cache_event"]
    known = {*spec["envelope"]}
    llm, _ = double_and_engine(model, {"kv_cache": {"max_tokens": 128}})
    executor: Any = llm.executor  # type: ignore[attr-defined]
    executor.args.kv_cache_config.host_cache_size = 1
    params = tensorrt_llm.SamplingParams(end_id=1, max_tokens=4)
    for first in range(4):
        llm.generate([first, *range(70)], params)  # type: ignore[attr-defined]

    kinds = set()
    for event in executor.take_events():
        data = event["data"]
        kinds.add(data["type"])
        assert set(event) <= known
        assert set(data) == set(spec["variants"][data["type"]])
    assert kinds == {"created", "stored", "removed"}


def test_outputs_have_the_contracts_fields(tensorrt_llm: ModuleType) -> None:
    classes = contract(tensorrt_llm)["classes"]
    llm = tensorrt_llm.LLM("m")
    output = llm.generate([1, 2], tensorrt_llm.SamplingParams(end_id=9))

    assert all(hasattr(output, name) for name in classes["RequestOutput"]["fields"])
    assert all(hasattr(output.outputs[0], n) for n in classes["CompletionOutput"]["fields"])
    assert all(hasattr(output.outputs[0], n) for n in classes["CompletionOutput"]["properties"])
    assert len(output.outputs[0].token_ids) == 32  # max_tokens' default
    with pytest.raises(RuntimeError):
        type(output)()


def test_figures_have_the_contracts_names_and_reading_takes_them(tensorrt_llm: ModuleType) -> None:
    spec = contract(tensorrt_llm)["iteration_stats"]
    llmapi = importlib.import_module("tensorrt_llm.llmapi")
    drafting = llmapi.NGramDecodingConfig(max_draft_len=3, max_matching_ngram_size=2)
    llm = tensorrt_llm.LLM("m", enable_iter_perf_stats=True, speculative_config=drafting)
    silent = tensorrt_llm.LLM("m")
    for each in (llm, silent):
        each.generate([1, 2], tensorrt_llm.SamplingParams(end_id=9))

    told = llm.get_stats()
    for item in told:
        assert set(item) <= set(spec["top_level"])
        for part in ("kvCacheStats", "inflightBatchingStats", "specDecodingStats"):
            assert set(item[part]) <= set(spec[part])
    assert told
    assert llm.get_stats() == silent.get_stats() == silent.get_kv_cache_events() == []
