"""The whole platform from outside: the official SDK, a plain stub, the client, the command line."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import openai
import pytest

from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock.routing.v1 import routing_service_pb2
from penstock_client import AsyncClient, Client, GenerateOptions, Generation
from penstock_testing.processes.platform import UpProcess, has_ended, wait_for

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("platform")]

WriteLines = Callable[[Sequence[str]], Path]
CODE = "import os\n\n\ndef read_lines(path):\n"


def test_official_sdk_streams_a_chat(sdk: openai.OpenAI, model: str) -> None:
    turns: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": "Return the sum of two numbers."}
    ]
    chunks = list(
        sdk.chat.completions.create(
            model=model,
            messages=turns,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


def ended_batch(sdk: openai.OpenAI, path: Path) -> openai.types.Batch:
    with path.open("rb") as file:
        uploaded = sdk.files.create(file=file, purpose="batch")
    batch = sdk.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h"
    )

    def ended() -> bool:
        return sdk.batches.retrieve(batch.id).status in {"completed", "failed", "expired"}

    wait_for(ended, "the batch to end", timeout_s=60)
    return sdk.batches.retrieve(batch.id)


def test_official_sdk_runs_a_batch_and_each_line_is_answered_once(
    sdk: openai.OpenAI, batch_file: WriteLines
) -> None:
    batch = ended_batch(sdk, batch_file([f"{CODE}    # {number}\n" for number in range(70)]))

    assert batch.status == "completed"
    assert batch.output_file_id is not None
    answers = [json.loads(x) for x in sdk.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(a["custom_id"] for a in answers) == sorted(f"line-{n}" for n in range(70))
    assert all(a["response"]["body"]["choices"][0]["finish_reason"] for a in answers)


def test_malformed_line_fails_the_batch_and_is_named(
    sdk: openai.OpenAI, batch_file: WriteLines
) -> None:
    path = batch_file([CODE, CODE])
    with path.open("a", encoding="utf-8") as file:
        file.write("{not json\n")
    batch = ended_batch(sdk, path)

    assert batch.status == "failed"
    assert batch.errors is not None
    assert [error.line for error in batch.errors.data or ()] == [3]


def test_official_sdk_gets_typed_errors(sdk: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        sdk.completions.create(model="no-such-model", prompt=CODE)
    with pytest.raises(openai.BadRequestError) as too_long:
        sdk.completions.create(model=model, prompt=CODE, max_tokens=1_000_000)
    with pytest.raises(openai.BadRequestError):
        sdk.completions.create(model=model, prompt="")
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="pk-wrong").completions.create(model=model, prompt=CODE)

    assert "1000000" in too_long.value.message
    assert "4096" in too_long.value.message


def test_plain_stub_streams_and_is_refused_with_a_wrong_key(
    platform: UpProcess, model: str
) -> None:
    request = generate_pb2.GenerateRequest(model=model, text=CODE)
    request.stop.max_tokens = 5
    with grpc.insecure_channel(platform.router) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        good = (("authorization", f"Bearer {platform.api_key}"),)
        events = list(stub.Generate(request, metadata=good, timeout=30))
        wrong = stub.Generate(request, metadata=(("authorization", "Bearer pk-wrong"),), timeout=30)
        with pytest.raises(grpc.RpcError):
            list(wrong)

    assert events[0].WhichOneof("event") == "started"
    assert events[-1].completed.usage.completion_tokens == 5
    assert wrong.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_requests_that_share_a_prefix_hit_the_cache_as_the_router_predicted(
    platform: UpProcess, model: str
) -> None:
    options = GenerateOptions(max_tokens=2, temperature=0.0)
    async with AsyncClient(platform.router, api_key=platform.api_key) as client:
        tokens = await client.tokenize(f"# {secrets.token_hex(8)}\n" + CODE * 200, model=model)
        prefix = tokens[:1000]
        first = await client.generate([*prefix, 5], model=model, options=options)
        # One by one: in a burst the router may well find that an idle worker is worth a prefill.
        rest = [
            await client.generate([*prefix, 6, n], model=model, options=options) for n in range(39)
        ]
        seen = [(w.worker_id, w.usage.cached_tokens, *await hits(client, w)) for w in rest]

    assert first.usage.cached_tokens == 0
    assert seen == [(first.worker_id, 992, 992, 992)] * 39


async def hits(client: AsyncClient, whole: Generation) -> tuple[int, int]:
    """Cached tokens as the router predicted them, and as the worker's ledger told it."""
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        answer = await client.explain(request_id=whole.request_id)
        if answer.HasField("outcome"):
            return answer.outcome.predicted_cached_tokens, answer.outcome.actual_cached_tokens
        assert asyncio.get_running_loop().time() < deadline, "no outcome"


def test_seeded_text_is_the_same_through_worker_router_and_gateway(
    platform: UpProcess, sdk: openai.OpenAI, model: str
) -> None:
    options = GenerateOptions(max_tokens=16, temperature=0.9, seed=7)
    key = platform.api_key
    with (
        Client(platform.router, api_key=key) as direct,
        Client(platform.router, api_key=key, mode="proxy") as proxied,
    ):
        texts = [c.generate(CODE, model=model, options=options).text for c in (direct, proxied)]
    through = sdk.completions.create(
        model=model, prompt=CODE, max_tokens=16, temperature=0.9, seed=7
    )

    assert {*texts, through.choices[0].text} == {texts[0]}


def penstock(platform: UpProcess, target: str, *arguments: str) -> str:
    access = ("--target" if target == platform.router else "--batch-target", target)
    argv = (sys.executable, "-m", "penstock_cli", *arguments, *access)
    done = subprocess.run(
        [*argv, "--api-key", platform.api_key],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_command_line_generates_explains_and_lists_the_fleet(platform: UpProcess) -> None:
    target = platform.router
    whole = json.loads(penstock(platform, target, "generate", CODE, "-n", "4", "--json"))
    request_id, worker_id = whole["started"]["request_id"], whole["started"]["worker_id"]
    story = json.loads(penstock(platform, target, "explain", request_id, "--json"))
    told = penstock(platform, target, "explain", whole["started"]["decision_id"])

    assert story["decision"]["chosen_worker_id"] == worker_id
    assert len(story["decision"]["candidates"]) == 2
    assert f"{worker_id}, because" in told
    assert len(json.loads(penstock(platform, target, "fleet", "--json"))) == 2


def test_command_line_runs_a_batch(
    platform: UpProcess, batch_file: WriteLines, tmp_path: Path
) -> None:
    target, answers = platform.batch, tmp_path / "answers.jsonl"
    requests = str(batch_file([CODE, CODE + "    pass\n"]))
    batch = json.loads(penstock(platform, target, "batch", "submit", requests, "--watch", "--json"))
    penstock(platform, target, "batch", "results", batch["id"], "--output", str(answers))

    assert (batch["status"], batch["counts"]["completed"]) == ("BATCH_STATUS_COMPLETED", 2)
    assert len(answers.read_text(encoding="utf-8").splitlines()) == 2
    assert batch["id"] in penstock(platform, target, "batch", "list", "--json")
    assert "2 answered" in penstock(platform, target, "batch", "status", batch["id"])
    assert penstock(platform, target, "batch", "results", batch["id"]) == answers.read_text(
        encoding="utf-8"
    )


async def test_killed_worker_is_started_again_while_requests_go_elsewhere(
    platform: UpProcess,
) -> None:
    victim = platform.children("penstock_worker")[0]
    async with AsyncClient(platform.router, api_key=platform.api_key) as client:
        os.kill(victim.pid, signal.SIGKILL)
        meanwhile = await client.generate(CODE, max_tokens=4)
        async with asyncio.timeout(60):
            await two_live_workers(client)
        afterwards = await client.generate(CODE, max_tokens=4)

    assert meanwhile.usage.completion_tokens == afterwards.usage.completion_tokens == 4
    assert has_ended(victim)
    pids = {child.pid for child in platform.children("penstock_worker")}
    assert len(pids) == 2
    assert victim.pid not in pids


async def two_live_workers(client: AsyncClient) -> None:
    """Until the router has noticed the loss and knows both workers again."""
    missed = False
    async for workers in client.watch_workers():
        live = [w for w in workers if w.sync_state == routing_service_pb2.SYNC_STATE_LIVE]
        missed = missed or len(live) < 2
        if missed and len(live) == 2:
            return
