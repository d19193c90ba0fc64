"""Every component restarted in turn under load: no stream loses or doubles a token, no line is lost."""

import asyncio
import json
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock_core.rpc.channels import channel
from penstock_testing.processes.deployment import Deployment, deployment

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

MODEL = "penstock-demo"
TOKENS = 96
CALLERS = 4
LINES = 40
NO_CHANGES: Mapping[str, Mapping[str, str]] = {}
PROMPTS = tuple(
    f"# {n}\n{text}"
    for n, text in enumerate(
        (
            "def add(a, b):\n    ",
            "class Stack:\n    def __init__(self):\n        ",
            "for name in names:\n    ",
            "import os\nimport sys\n\n\ndef main():\n    ",
        )
    )
)


async def streamed(sdk: openai.AsyncOpenAI, prompt: str) -> str:
    """All of a stream; AssertionError if it lacks an end."""
    stream = await sdk.completions.create(
        model=MODEL, prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
    )  # fmt: skip
    text, reason, used = "", None, 0
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.text
            reason = choice.finish_reason or reason
        used = chunk.usage.completion_tokens if chunk.usage else used
    assert (reason, used) == ("length", TOKENS)
    return text


@dataclass(slots=True)
class Load:
    """Callers one after another. ``expected`` is what each prompt gives when nobody disturbs it."""

    sdk: openai.AsyncOpenAI
    expected: dict[str, str]
    done: int = 0
    failures: list[str] = field(default_factory=list)
    went_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """One caller."""
        while True:
            for prompt, text in self.expected.items():
                try:
                    assert await streamed(self.sdk, prompt) == text
                except (openai.OpenAIError, httpx.HTTPError, AssertionError) as error:
                    self.failures.append(repr(error))
                self.done += 1
                self.went_on.set()

    async def answers(self, count: int) -> None:
        """Wait until so many more have come."""
        wanted = self.done + count
        async with asyncio.timeout(120):
            while self.done < wanted:
                self.went_on.clear()
                await self.went_on.wait()


@asynccontextmanager
async def load(sdk: openai.AsyncOpenAI) -> AsyncIterator[Load]:
    """Under way inside; a failure of any caller fails the test."""
    alone = {prompt: await streamed(sdk, prompt) for prompt in PROMPTS}
    together = await asyncio.gather(*(streamed(sdk, prompt) for prompt in PROMPTS))
    # Where two tokens are all but equally likely, who shares the step decides; such prove nothing.
    same = {p: t for (p, t), other in zip(alone.items(), together, strict=True) if t == other}
    assert same
    running = Load(sdk, same)
    callers = [asyncio.create_task(running.run()) for _ in range(CALLERS)]
    try:
        yield running
    finally:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    assert running.failures == []


async def submitted(sdk: openai.AsyncOpenAI, path: Path) -> str:
    body = {"model": MODEL, "max_tokens": 16, "temperature": 0}
    line = {"method": "POST", "url": "/v1/completions"}
    lines = [
        json.dumps({"custom_id": str(n), **line, "body": {**body, "prompt": f"x_{n} = "}})
        for n in range(LINES)
    ]
    await asyncio.to_thread(path.write_text, "\n".join(lines), encoding="utf-8")
    with path.open("rb") as file:
        uploaded = await sdk.files.create(file=file, purpose="batch")
    batch = await sdk.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h"
    )
    return batch.id


async def answered_lines(sdk: openai.AsyncOpenAI, batch_id: str) -> Sequence[str]:
    """Custom ids of the answers, once the batch is done."""
    async with asyncio.timeout(240):
        while (batch := await sdk.batches.retrieve(batch_id)).status != "completed":
            assert batch.status in {"validating", "in_progress", "finalizing"}
            await asyncio.sleep(0.1)
    assert batch.output_file_id is not None
    content = await sdk.files.content(batch.output_file_id)
    return [json.loads(line)["custom_id"] for line in content.text.splitlines()]


@asynccontextmanager
async def platform(
    changes: Mapping[str, Mapping[str, str]] = NO_CHANGES,
) -> AsyncIterator[tuple[Deployment, openai.AsyncOpenAI, Path]]:
    with tempfile.TemporaryDirectory(prefix="pk-") as name:
        async with deployment(Path(name), changes=changes) as running:
            await running.live()
            async with openai.AsyncOpenAI(
                base_url=running.gateway, api_key="any", max_retries=0, timeout=240
            ) as sdk:
                yield running, sdk, Path(name)


async def test_restarting_every_component_in_turn_loses_no_request_and_no_line() -> None:
    async with platform() as (running, sdk, directory):
        patient = sdk.with_options(max_retries=30)
        async with load(sdk) as callers:
            batch = await submitted(patient, directory / "lines.jsonl")
            statuses = {}
            for name in ("router-1", "worker-1", "batch", "worker-2", "batch-worker", "router-2"):
                await callers.answers(CALLERS)
                statuses[name] = await running.services[name].restart()
            running.redis.stop()
            await callers.answers(CALLERS)
            await asyncio.to_thread(running.redis.start)
            await callers.answers(CALLERS)
            done = await answered_lines(patient, batch)

    assert statuses == dict.fromkeys(statuses, 0)
    assert sorted(done, key=int) == [str(n) for n in range(LINES)]


async def test_the_only_router_killed_or_restarted_costs_no_stream() -> None:
    """The gateway goes on with what it has, as soon as a router is back."""
    async with platform() as (running, sdk, _), load(sdk) as callers:
        await running.services["router-2"].stop()
        await callers.answers(CALLERS)
        only = running.services["router-1"]
        await only.stop(signal.SIGKILL)
        await only.start()
        await callers.answers(2 * CALLERS)
        assert await only.restart() == 0
        await callers.answers(2 * CALLERS)


async def test_readiness_goes_first_and_then_what_runs_is_finished() -> None:
    lingering = {"LINGER_S": "3"}
    async with platform({"gateway": lingering, "router-1": lingering}) as (running, sdk, _):
        gateway, router = running.services["gateway"], running.services["router-1"]
        stopping = [asyncio.create_task(each.stop()) for each in (gateway, router)]
        async with asyncio.timeout(30), channel(router.address) as to:
            health = health_pb2_grpc.HealthStub(to)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            async with httpx.AsyncClient(base_url=f"http://{gateway.address}") as http:
                while (await http.get("/readyz")).status_code == 200:
                    pass
            async for seen in watch:
                if seen.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
            watch.cancel()
        # Neither is ready any more; who has not noticed is served to the end.
        async with asyncio.timeout(120):
            await asyncio.gather(*(streamed(sdk, prompt) for prompt in PROMPTS * 2))
        assert await asyncio.gather(*stopping) == [0, 0]
        with pytest.raises(openai.APIConnectionError):
            await streamed(sdk, PROMPTS[0])
