"""Each known pitfall of TensorRT-LLM 1.2, by its number in the reference: the second half."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from pydantic import ValidationError

from penstock_core.errors import EngineFailed, NotSupported
from penstock_engine.api import EngineOutput, EngineRequest, KvRemoved, KvStored, Sampling, TokenOut
from penstock_engine.trtllm.building import build_engine, read_checkpoint
from penstock_engine.trtllm.cache_events import parse_events
from penstock_engine.trtllm.llm_args import llm_arguments
from penstock_engine.trtllm.settings import MIN_EVENT_BUFFER, TrtLlmSettings
from penstock_testing.processes.worker import worker_process

EAGLE: dict[str, object] = {"mode": "eagle3", "draft_model": "head"}
PROMPT = [(7 * i) % 250 for i in range(75)]


def settings(**given: object) -> TrtLlmSettings:
    return TrtLlmSettings.model_validate({"model": "m", **given})


def arguments(model: Path, **given: object) -> dict[str, Any]:
    chosen = settings(**given)
    return llm_arguments(chosen, read_checkpoint(chosen, model))


def refusal(**given: object) -> str:
    with pytest.raises(ValidationError) as refused:
        settings(**given)
    return str(refused.value)


def ask(name: str, **changes: Any) -> EngineRequest:
    fields: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 8, **changes}
    return EngineRequest(name, sampling=Sampling(temperature=0), **fields)


async def run(engine: Any, request: EngineRequest) -> list[EngineOutput]:
    async with asyncio.timeout(30):
        return [output async for output in engine.generate(request)]


async def events(engine: Any, kind: type[Any]) -> list[Any]:
    """The first batch of cache events with one of a kind: those of it."""
    async with asyncio.timeout(10):
        async for batch in engine.kv_events():
            if found := [event for event in batch if isinstance(event, kind)]:
                return found
    raise AssertionError("the events ended")


async def test_pitfall_14_a_disconnect_ends_nothing_by_itself_so_we_abort(start: Any) -> None:
    async with start() as double:
        generating = double.engine.generate(ask("r", max_tokens=400))
        stream = cast("AsyncGenerator[EngineOutput, None]", generating)
        async with aclosing(stream) as outputs:
            async for output in outputs:
                if isinstance(output, TokenOut):
                    break
        running = list(double.executor.running)

    request = double.submitted[0]
    assert double.steering.aborted == [request.id]
    assert len(request.said) < 400
    assert running == []


async def test_pitfall_15_events_are_dropped_where_the_buffer_is_small(
    start: Any, model: Path
) -> None:
    two_seconds = 2 * 3 * 100_000 // 32  # stored, evicted and offloaded blocks of 100k tokens/s
    kept = arguments(model)["kv_cache_config"].arguments["event_buffer_max_size"]
    assert kept >= two_seconds
    assert "greater than or equal to 16384" in refusal(kv_cache={"event_buffer": 1024})
    assert MIN_EVENT_BUFFER == 16_384

    async with start() as double:
        await run(double.engine, ask("a"))
        stored = await events(double.engine, KvStored)
        double.executor.events.size = 1  # as if too small a buffer had been passed
        double.executor.events.drop = 3
        await run(double.engine, ask("b", prompt=[9, *PROMPT]))
        await run(double.engine, ask("c", prompt=[8, *PROMPT]))
        await run(double.engine, ask("d", prompt=[6, *PROMPT]))
        removed = await events(double.engine, KvRemoved)

    assert set(stored[0].hashes) <= set(removed[0].hashes)


async def test_pitfall_16_host_offload_with_events_must_have_been_tested(start: Any) -> None:
    assert "issues/4666" in refusal(kv_cache={"host_cache_bytes": 1 << 30})
    assert settings(kv_cache={"host_cache_bytes": 1 << 30, "host_offload_with_events": True})
    # What crashed the serializer: a change that is none.
    nothing = {"type": "updated", "block_hash": 1, "cache_level": None, "priority": None}
    assert parse_events({"event_id": 1, "window_size": 1, "data": nothing})


async def test_pitfall_17_events_are_in_process_only_so_one_reader_feeds_everybody(
    start: Any, model: Path
) -> None:
    from penstock_core.blocks import chain, pack_tokens
    from penstock_testing.engines.trtllm import double_and_engine
    from penstock_testing.servers.worker import running_worker

    llm, engine = double_and_engine(model, {"kv_cache": {"max_tokens": 2048}})
    async with running_worker(engine, model=model) as worker:
        await run(engine, ask("a", chain_start=3))
        name = chain(pack_tokens(PROMPT), 3, 32)[0].to_bytes(8, "little")
        found = await asyncio.gather(*(_sees(worker.endpoint, name) for _ in range(3)))
    assert found == [True, True, True]
    assert cast("Any", llm).shutdowns == 1


async def _sees(endpoint: str, name: bytes) -> bool:
    from penstock.worker.v1.worker_service_pb2 import WatchStateRequest
    from penstock.worker.v1.worker_service_pb2_grpc import WorkerServiceStub
    from penstock_core.rpc import server as rpc

    async with rpc.channel(endpoint) as channel:
        async for frame in WorkerServiceStub(channel).WatchState(WatchStateRequest(), timeout=20):
            if name in frame.SerializeToString():
                return True
    return False


async def test_pitfall_18_the_engines_hashes_are_its_own_affair(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def told() -> list[tuple[int, ...]]:
        async with start() as double:
            await run(double.engine, ask("a", chain_start=5))
            return [event.hashes for event in await events(double.engine, KvStored)]

    usual = await told()
    import sys

    cache = sys.modules["tensorrt_llm._cache"].BlockCache
    monkeypatch.setattr(cache, "_key", lambda _, *parts: hash(repr(parts)) & (1 << 64) - 1)

    assert await told() == usual


async def test_pitfall_19_a_start_that_hangs_is_given_up(
    tensorrt_llm: ModuleType, model: Path
) -> None:
    from penstock_testing.engines.trtllm import double_and_engine

    llm, engine = double_and_engine(model, {"startup_timeout_s": 0.05})
    cast("Any", llm).steering.stalled = True
    with pytest.raises(EngineFailed, match="did not answer"):
        await engine.start()
    await engine.close()


@pytest.mark.process
def test_pitfall_20_an_import_that_hangs_in_mpi_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    package = tmp_path / "tensorrt_llm"
    package.mkdir()
    (package / "__init__.py").write_text("import signal\nsignal.pause()\n")
    config = tmp_path / "engine.yaml"
    config.write_text("model: demo\nstartup_timeout_s: 0.5\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    arguments = ("--engine", "trtllm", "--config", str(config))

    with worker_process({}, arguments, {"PYTHONPATH": path}) as worker:
        status = worker.popen.wait(timeout=60)

    assert status == -signal.SIGALRM
    assert "tensorrt_llm/__init__.py" in "".join(worker.lines)


def test_pitfall_21_memory_is_left_for_warm_up_and_drafts(
    tensorrt_llm: ModuleType, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = arguments(model)["kv_cache_config"].arguments["free_gpu_memory_fraction"]
    drafting = arguments(model, speculation=EAGLE)["kv_cache_config"].arguments

    assert (plain, drafting["free_gpu_memory_fraction"]) == (0.85, 0.80)
    # And where it did not suffice, that is a failure to start, told in a line.
    monkeypatch.setenv("TENSORRT_LLM_DOUBLE_GPUS", "0")
    chosen = settings(model=str(model))
    with pytest.raises(EngineFailed, match="cannot load the model"):
        build_engine(chosen, read_checkpoint(chosen, model), dict)


async def test_pitfall_22_one_model_falls_back_to_greedy_unless_sampling_is_allowed(
    start: Any, model: Path
) -> None:
    for kind in (EAGLE, {"mode": "mtp"}):
        import json

        config = json.loads((model / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
        (model / "config.json").write_text(json.dumps(config))
        given = arguments(model, speculation=kind)["speculative_config"].arguments
        assert given["allow_advanced_sampling"] is True
    assert "LoRA" in refusal(lora={"adapters": [{"name": "a", "path": "/"}]})
    assert "pipeline" in refusal(parallel={"pipeline": 2}, speculation=EAGLE)

    async with start(speculation={**EAGLE, "allow_advanced_sampling": False}) as double:
        with pytest.raises(NotSupported, match="draws greedily"):
            await run(double.engine, EngineRequest("r", PROMPT, 4, Sampling(temperature=0.5)))
        await run(double.engine, ask("greedy"))


@pytest.mark.parametrize(
    "given",
    [
        {"parallel": {"context": 2}},
        {"context_parallel_size": 2},
        {"cache_transceiver_config": {"backend": "NIXL"}},
        {"kv_connector_config": {}},
    ],
)
async def test_pitfall_23_disaggregation_with_context_parallelism_hangs_so_neither_is_offered(
    given: dict[str, object], model: Path
) -> None:
    assert "Extra inputs" in refusal(**given)
    passed = set(arguments(model, parallel={"tensor": 8, "expert": 8, "attention_dp": True}))
    assert not passed & {"context_parallel_size", "cache_transceiver_config", "kv_connector_config"}
