"""Each known pitfall of TensorRT-LLM 1.2, by its number in the reference: the first half."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from penstock_core.errors import NotSupported
from penstock_core.settings import SettingsError
from penstock_engine.api import EngineRequest, FinishReason, RequestDone, Sampling, TokenOut
from penstock_engine.trtllm import rules
from penstock_engine.trtllm.canary import MIN_EQUAL, generate, share_equal
from penstock_engine.trtllm.checkpoint import Checkpoint, check
from penstock_engine.trtllm.llm_args import Build, llm_arguments
from penstock_engine.trtllm.package import check_version
from penstock_engine.trtllm.settings import TrtLlmSettings

EAGLE: dict[str, object] = {"mode": "eagle3", "draft_model": "head"}
PROMPT = [(7 * i) % 250 for i in range(75)]
KINDS: list[dict[str, object]] = [
    {"mode": "none"},
    {"mode": "ngram"},
    {"mode": "draft_target", "draft_model": "small"},
    EAGLE,
    {**EAGLE, "one_model": False},
    {"mode": "mtp"},
    {"mode": "auto"},
]


def settings(**given: object) -> TrtLlmSettings:
    return TrtLlmSettings.model_validate({"model": "m", **given})


def arguments(model: Path, **given: object) -> dict[str, Any]:
    return llm_arguments(settings(**given), Checkpoint.read(model))


def refusal(**given: object) -> str:
    with pytest.raises(ValidationError) as refused:
        settings(**given)
    return str(refused.value)


async def run(engine: Any, **changes: Any) -> list[Any]:
    fields: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 20, **changes}
    fields.setdefault("sampling", Sampling(temperature=0))
    return [output async for output in engine.generate(EngineRequest("r", **fields))]


def test_pitfall_01_kv_cache_corruption_in_1_2_0() -> None:
    with pytest.raises(NotSupported, match=r"1\.2\.0"):
        check_version("1.2.0")


def test_pitfall_02_eagle3_gibberish_is_caught_by_a_canary(
    tensorrt_llm: ModuleType, model: Path
) -> None:
    outputs = [
        generate(TrtLlmSettings.model_validate({"model": str(model), "speculation": kind}), model)
        for kind in ({"mode": "none"}, EAGLE)
    ]
    gibberish = [[0] * len(output) for output in outputs[1]]

    assert share_equal(*outputs) == 1
    assert share_equal(outputs[0], gibberish) < MIN_EQUAL


async def test_pitfall_03_eagle3_over_allocates_so_the_engine_is_asked_how_many_blocks_there_are(
    tensorrt_llm: ModuleType, model: Path
) -> None:
    from penstock_testing.engines.trtllm import double_and_engine

    given = {"kv_cache": {"max_tokens": 2048}, "speculation": EAGLE}
    llm, engine = double_and_engine(model, given)
    created: Any = llm.executor.events.events[0]  # type: ignore[attr-defined]
    created["data"]["num_blocks_per_cache_level"] = [48, 0]
    await engine.start()
    told = engine.info().capacity_blocks
    await engine.close()

    assert told == 48


def test_pitfall_04_padded_graphs_overrun_hidden_states_of_one_model_eagle(model: Path) -> None:
    assert "pull/15708" in refusal(speculation=EAGLE, cuda_graphs={"padding": True})
    graphs = arguments(model, speculation=EAGLE)["cuda_graph_config"]
    assert graphs.arguments["enable_padding"] is False


def test_pitfall_05_windows_of_several_sizes_double_the_kv_budget_with_eagle() -> None:
    windows = {"max_attention_window": [512, 4096]}
    assert "pull/12855" in refusal(speculation=EAGLE, kv_cache=windows)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["mode"]))
def test_pitfall_06_speculation_crashes_around_cuda_graphs_so_they_are_unpadded_and_can_be_off(
    model: Path, kind: dict[str, object]
) -> None:
    on = arguments(model, speculation=kind)["cuda_graph_config"]
    off = arguments(model, speculation=kind, cuda_graphs=None)

    assert on == Build("CudaGraphConfig", {"enable_padding": False})
    assert "cuda_graph_config" in off  # left out it would mean: on
    assert off["cuda_graph_config"] is None


def test_pitfall_07_static_draft_trees_are_not_to_be_had(model: Path) -> None:
    assert "Extra inputs" in refusal(speculation={**EAGLE, "eagle_choices": [[0], [1]]})
    assert (
        "eagle_choices" not in arguments(model, speculation=EAGLE)["speculative_config"].arguments
    )


def test_pitfall_08_guided_requests_reject_drafts_of_several_mtp_layers() -> None:
    told = rules.warnings(settings(speculation={"mode": "mtp", "num_layers": 2}))
    fine = rules.warnings(settings(speculation={"mode": "mtp", "num_layers": 1}))

    assert any("issues/7878" in line for line in told)
    assert not fine


def test_pitfall_09_guided_eagle3_crashes_where_the_schedule_reaches_none() -> None:
    schedule = {"draft_len_schedule": {1: 3, 16: 0}}
    assert "issues/15022" in refusal(speculation={**EAGLE, **schedule})
    assert settings(speculation={**EAGLE, "draft_len_schedule": {1: 3, 16: 1}})


@pytest.mark.parametrize("field", ["use_dynamic_tree", "dynamic_tree_max_topK"])
def test_pitfall_10_dynamic_trees_violate_grammars(model: Path, field: str) -> None:
    assert "Extra inputs" in refusal(speculation={**EAGLE, field: 1})
    assert field not in arguments(model, speculation=EAGLE)["speculative_config"].arguments


def test_pitfall_11_guided_eagle3_leaks_special_tokens_of_harmony(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "gpt_oss"}))

    with pytest.raises(SettingsError, match="issues/9256"):
        check(settings(speculation=EAGLE), Checkpoint.read(model))
    check(settings(speculation=EAGLE, guided_decoding=None), Checkpoint.read(model))


async def test_pitfall_12_stop_strings_are_matched_by_us_and_end_in_the_engine(
    start: Any, model: Path
) -> None:
    from penstock_testing.callers.calls import Transcript
    from penstock_testing.servers.cluster import ask
    from penstock_testing.servers.worker import running_worker

    text = b"one two three four five six seven eight nine ten"
    async with start() as double:
        double.steering.script = lambda before: text[len(before) - 5]
        # The worker starts its engine itself; this one is started already.
        async with running_worker(Restarted(double.engine), model=model) as worker:
            request = ask("start", "r", 40)
            request.stop.strings.append("ee fo")
            transcript = Transcript()
            async for response in _call(worker.endpoint, request):
                transcript.add(response)
        assert double.executor.running == []

    assert transcript.text() == "one two thr"
    assert len(double.steering.aborted) == 1
    assert double.submitted[0].params.stop is None
    assert len(double.submitted[0].said) < 40


async def _call(endpoint: str, request: Any) -> Any:
    from penstock.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
    from penstock_core.rpc import server as rpc

    async with rpc.channel(endpoint) as channel:
        async for response in InferenceServiceStub(channel).Generate(request, timeout=30):
            yield response


class Restarted:
    """An engine whose life is its fixture's."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def start(self) -> None:
        """It runs."""

    async def close(self) -> None:
        """The fixture closes it."""


async def test_pitfall_13_an_abort_amid_logprobs_ends_one_request_only(start: Any) -> None:
    async with start(speculation={"mode": "ngram"}) as double:
        outputs = []
        request = EngineRequest("r", PROMPT, 200, Sampling(temperature=0), logprobs=2)
        async for output in double.engine.generate(request):
            outputs.append(output)
            if len(outputs) == 4:
                double.engine.abort("r")
        after = await run(double.engine, logprobs=2)

    tokens = [out for out in outputs if isinstance(out, TokenOut)]
    assert tokens[-1].finish is FinishReason.ABORTED
    assert all(len(out.logprobs) == len(out.token_ids) for out in tokens)
    assert isinstance(after[-1], RequestDone)
