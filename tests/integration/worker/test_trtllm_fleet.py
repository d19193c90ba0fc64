"""TensorRT-LLM workers as processes, on the contract double, behind a real router."""

import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from penstock.inference.v1 import inference_service_pb2_grpc
from penstock.routing.v1 import routing_service_pb2_grpc
from penstock_core.rpc import server as rpc
from penstock_router.process import running_router
from penstock_testing.processes.worker import WorkerProcess, worker_process
from penstock_testing.servers.cluster import DEFAULT_SETTINGS, Answer, Cluster, ask

pytestmark = pytest.mark.process
DOUBLE = Path(__file__).parents[2] / "contract/trtllm/double"
MODEL = "penstock-demo"
CONFIG = """
model: demo
max_batch_size: 8
kv_cache: {max_tokens: 4096}
guided_decoding: null
speculation: {mode: eagle3, draft_model: head}
"""


@pytest.fixture
def control(tmp_path: Path) -> Path:
    """Orders to the doubles: see their ``_executor``."""
    folder = tmp_path / "control"
    folder.mkdir()
    return folder


@contextmanager
def trtllm_worker(control: Path, port: int = 0, **settings: str) -> Iterator[WorkerProcess]:
    config = control.parent / "trtllm.yaml"
    config.write_text(CONFIG)
    path = os.pathsep.join([str(DOUBLE), os.environ.get("PYTHONPATH", "")])
    given = {"ID": "trt", "LISTEN": f"127.0.0.1:{port}", **settings}
    environment = {"PYTHONPATH": path, "TENSORRT_LLM_DOUBLE": str(control)}
    arguments = ("--engine", "trtllm", "--config", str(config))
    with worker_process(given, arguments, environment) as process:
        yield process


@asynccontextmanager
async def fleet(*endpoints: str) -> AsyncIterator[Cluster]:
    settings = DEFAULT_SETTINGS.model_copy(update={"workers": ",".join(endpoints)})
    async with running_router(settings) as router, rpc.channel(router.endpoint) as channel:
        cluster = Cluster(
            router,
            [],
            inference_service_pb2_grpc.InferenceServiceStub(channel),
            routing_service_pb2_grpc.RoutingServiceStub(channel),
        )
        await cluster.live(len(endpoints))
        yield cluster


def prompt(first: int, size: int = 300) -> list[int]:
    return [first, *((7 * i) % 900 + 20 for i in range(size - 1))]


async def send(cluster: Cluster, tokens: list[int], request_id: str, blocks: int) -> Answer:
    """Send a prompt, see that the hit was as predicted, and wait until its blocks are known."""
    answer = await cluster.generate(ask(tokens, request_id, 8, MODEL))
    outcome = (await cluster.explain(request_id)).outcome
    assert outcome.status == "OK"
    assert outcome.predicted_cached_tokens == outcome.actual_cached_tokens
    assert outcome.actual_cached_tokens == answer.completed.usage.cached_tokens
    await cluster.until(lambda: len(cluster.router.picture.index) == blocks)
    return answer


async def test_requests_stream_through_a_trtllm_and_a_native_worker(control: Path) -> None:
    native: Mapping[str, str] = {"ID": "native", "KV_MEMORY_MIB": "16", "MAX_BATCH": "4"}
    with trtllm_worker(control) as trt, worker_process(native) as other:
        async with fleet(trt.endpoint, other.endpoint) as cluster:
            answers = [await few(cluster, i) for i in range(6)]
            # Whoever served the last of them goes away in good order: the other takes over.
            left, leaver = ("native", trt) if served(answers) == "trt" else ("trt", other)
            leaver.popen.send_signal(signal.SIGTERM)
            await cluster.until(lambda: cluster.router.fleet.states().get("LIVE", 0) == 1)
            answers += [await few(cluster, i) for i in range(6, 12)]
            outcomes = [(await cluster.explain(f"r{i}")).outcome for i in range(12)]

    assert {answer.started.worker_id for answer in answers} == {"trt", "native"}
    assert served(answers) == left
    assert all(len(answer.tokens) == 6 for answer in answers)
    assert all(o.predicted_cached_tokens == o.actual_cached_tokens for o in outcomes)


async def few(cluster: Cluster, number: int) -> Answer:
    return await cluster.generate(ask(prompt(number, 40 + number), f"r{number}", 6, MODEL))


def served(answers: list[Answer]) -> str:
    return answers[-1].started.worker_id


async def test_hits_are_as_predicted_over_partial_blocks_and_a_loss_of_events(
    control: Path,
) -> None:
    with trtllm_worker(control) as worker:
        async with fleet(worker.endpoint) as cluster:
            # 300 tokens and 8 more fill nine blocks; the rest of them is stored as a partial one.
            cold = await send(cluster, prompt(1), "cold", 9)
            warm = await send(cluster, prompt(1), "warm", 9)
            (control / "drop").write_text("1")
            await cluster.generate(ask(prompt(2), "lost", 8, MODEL))
            # The next event shows the gap: all is forgotten but what comes after it.
            await cluster.generate(ask(prompt(3), "after", 8, MODEL))
            worker.find("(the picture of the KV cache is lost)")
            await send(cluster, prompt(4), "settled", 18)
            again = await send(cluster, prompt(1), "again", 27)
            rewarmed = await send(cluster, prompt(1), "rewarmed", 27)

    assert cold.completed.usage.cached_tokens == again.completed.usage.cached_tokens == 0
    assert warm.completed.usage.cached_tokens == rewarmed.completed.usage.cached_tokens == 288
    assert warm.tokens == cold.tokens == again.tokens


async def test_a_restarted_worker_is_known_to_be_empty(control: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with trtllm_worker(control, port) as first:
        async with fleet(first.endpoint) as cluster:
            before = await send(cluster, prompt(1), "before", 9)
            first.popen.kill()
            first.popen.wait()
            with trtllm_worker(control, port) as second:
                assert second.endpoint == first.endpoint
                await cluster.until(lambda: len(cluster.router.picture.index) == 0)
                await cluster.live(1)
                after = await send(cluster, prompt(1), "after", 9)

    assert after.completed.usage.cached_tokens == 0
    assert after.started.epoch != before.started.epoch


async def test_speculation_shows_in_usage(control: Path) -> None:
    with trtllm_worker(control) as worker:
        async with fleet(worker.endpoint) as cluster:
            answer = await send(cluster, prompt(1), "r", 9)

    usage = answer.completed.usage
    assert 0 < usage.accepted_draft_tokens < usage.drafted_tokens
    assert answer.completed.timing.prefill_s > 0


async def test_a_crash_of_the_engine_ends_the_process_with_a_failure(control: Path) -> None:
    with trtllm_worker(control) as worker:
        async with fleet(worker.endpoint) as cluster:
            (control / "crash").touch()
            with pytest.raises(Exception, match="TensorRT-LLM failed"):
                await cluster.generate(ask(prompt(1), "victim", 8, MODEL))
            assert worker.popen.wait(timeout=60) == 1
    assert any("CUDA error" in line for line in worker.lines)


def test_the_model_is_loaded_before_any_loop_thread_or_fork(control: Path) -> None:
    with trtllm_worker(control) as worker:
        assert worker.endpoint
        built = json.loads((control / "built").read_text())

    assert built["pid"] == worker.popen.pid
    assert not built["has_loop"]
    assert len(built["threads"]) == 1, built["threads"]


def test_a_term_signal_ends_it_in_good_order(control: Path) -> None:
    with trtllm_worker(control) as worker:
        assert worker.endpoint
        worker.popen.send_signal(signal.SIGTERM)
        assert worker.popen.wait(timeout=60) == 0


def test_a_bad_setting_is_told_before_anything_is_loaded(control: Path) -> None:
    with trtllm_worker(control, KV_MEMORY_MIB="512") as worker:
        assert worker.popen.wait(timeout=60) == 2
    assert "kv_cache.free_gpu_memory_fraction" in "".join(worker.lines)
