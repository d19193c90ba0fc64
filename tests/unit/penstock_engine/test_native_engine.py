"""The engine's face: refusals at the door, failing steps, and the end of the thread."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock_core.errors import Conflict, EngineFailed, InvalidRequest, NotFound, NotSupported
from penstock_engine.api import Constraint, EngineRequest, RequestDone, Sampling, TokenOut
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.execution.runner import Runner
from penstock_engine.native.scheduling.plan import StepPlan
from penstock_engine.native.settings import NativeSettings
from penstock_testing.engines.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("engine"))


@pytest.fixture
async def engine(model: Path) -> AsyncIterator[NativeEngine]:
    engine = NativeEngine(NativeSettings(model, device="cpu", kv_blocks=6, threads=1))
    await engine.start()
    yield engine
    await engine.close()


def ask(name: str = "r", **changes: object) -> EngineRequest:
    fields: dict[str, object] = {"prompt": [1, 2, 3], "max_tokens": 4} | changes
    return EngineRequest(name, **fields)  # type: ignore[arg-type]


async def run(engine: NativeEngine, request: EngineRequest) -> list[object]:
    async with asyncio.timeout(30):
        return [output async for output in engine.generate(request)]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"prompt": []}, InvalidRequest, "empty"),
        ({"prompt": [1, 257]}, InvalidRequest, "vocabulary of 257"),
        ({"sampling": Sampling(logit_bias={-1: 1.0})}, InvalidRequest, "vocabulary"),
        ({"emitted": [[999]]}, InvalidRequest, "vocabulary"),
        ({"prompt": [1] * 190, "max_tokens": 5}, InvalidRequest, "7 KV blocks, and there are 6"),
        ({"adapter": "fr"}, NotFound, "adapter 'fr'"),
        ({"constraint": Constraint("json_object")}, NotSupported, "json_object"),
    ],
)
async def test_what_cannot_be_served_is_refused(
    engine: NativeEngine, changes: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        await run(engine, ask("refused", **changes))

    assert isinstance((await run(engine, ask()))[-1], RequestDone)


async def test_an_id_is_served_once_at_a_time(engine: NativeEngine) -> None:
    first = engine.generate(ask(max_tokens=100))
    await anext(first)

    with pytest.raises(Conflict):
        await run(engine, ask())


async def test_a_failing_step_fails_every_request_and_the_engine(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(self: Runner, plan: StepPlan) -> None:
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr(Runner, "logits", explode)
    results = await asyncio.gather(
        *(run(engine, ask(f"{i}")) for i in range(3)), return_exceptions=True
    )

    assert all(isinstance(result, EngineFailed) for result in results)
    assert engine.state().failed
    assert "engine step failed" in caplog.text
    with pytest.raises(EngineFailed, match="on fire"):
        await run(engine, ask("later"))
    with pytest.raises(EngineFailed, match="on fire"):
        await anext(engine.kv_events())


async def test_a_model_that_cannot_be_loaded_fails_the_start(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    engine = NativeEngine(NativeSettings(tmp_path, device="cpu", kv_blocks=6))
    (tmp_path / "model.safetensors").write_bytes(b"gone")

    with pytest.raises(EngineFailed, match="cannot be loaded"):
        await engine.start()
    with pytest.raises(EngineFailed):
        await run(engine, ask())
    await engine.close()


async def test_close_ends_requests_events_and_the_thread(model: Path) -> None:
    before = _threads()
    engine = NativeEngine(NativeSettings(model, device="cpu", kv_blocks=6, threads=1))
    await engine.start()
    running = engine.generate(ask(max_tokens=180))
    await anext(running)
    followed = asyncio.create_task(_follow(engine))

    await engine.close()
    await engine.close()

    with pytest.raises(EngineFailed, match="closed"):
        await _drain(running)
    assert await followed >= 0
    assert _threads() <= before


def _threads() -> set[threading.Thread]:
    """Everybody's but asyncio's own helper threads, which stay as long as their loop."""
    return {t for t in threading.enumerate() if not t.name.startswith("asyncio_")}


async def _drain(outputs: AsyncIterator[object]) -> None:
    async for _ in outputs:
        pass


async def _follow(engine: NativeEngine) -> int:
    return sum([len(events) async for events in engine.kv_events()])


async def test_an_id_may_come_again_while_its_forerunner_is_ending(engine: NativeEngine) -> None:
    for _ in range(20):
        first = engine.generate(ask(max_tokens=100))
        await anext(first)
        await first.aclose()  # type: ignore[attr-defined]

    outputs = await run(engine, ask(max_tokens=3))

    positions = [out.first_position for out in outputs if isinstance(out, TokenOut)]
    assert positions == [0, 1, 2]


async def test_state_tells_rates_after_some_steps(engine: NativeEngine) -> None:
    await run(engine, ask(prompt=list(range(60)), max_tokens=20))

    state = engine.state()
    assert state.step_s > 0
    assert state.prefill_tokens_per_s > 0
    assert state.tokens_per_step == pytest.approx(1.0)
    assert state.cached_blocks == 2


async def test_a_slow_reader_does_not_hold_up_the_others(engine: NativeEngine) -> None:
    slow = engine.generate(ask("slow", max_tokens=60))
    await anext(slow)

    assert isinstance((await run(engine, ask("quick")))[-1], RequestDone)
    assert len([out async for out in slow if isinstance(out, TokenOut)]) == 60
