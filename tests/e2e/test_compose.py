"""The images and the compose file, in a real Docker engine: everything but what only a registry has."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from penstock_testing.platform import wait_for
from penstock_testing.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
OURS = (
    "router-1",
    "router-2",
    "worker-1",
    "worker-2",
    "batch",
    "batch-worker",
    "gateway",
    "flower",
)
IMAGES = ("router", "worker", "batch", "gateway", "flower")
MODEL = "penstock-demo"
START_S, DONE_S = 600, 120


def compose_command() -> Sequence[str]:
    """Compose 2's plugin, or the older program."""
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    return ("docker", "compose")


def has_engine() -> bool:
    """Whether a Docker engine answers, and our base images are at hand."""
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(
        ["docker", "image", "inspect", "python:3.11-slim-bookworm", "redis:7-bookworm"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


pytestmark = [
    pytest.mark.compose,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not has_engine(), reason="no Docker engine with the base images"),
]


@dataclass(frozen=True, slots=True)
class Stack:
    """A project of its own; ``port`` is the gateway's."""

    project: str
    port: int
    environment: dict[str, str]

    def compose(self, *arguments: str) -> str:
        """What a compose command says. Raises CalledProcessError."""
        command = [*compose_command(), "-p", self.project, "-f", "deploy/compose.yaml", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def health(self, service: str) -> str:
        """Docker's word for it."""
        container = self.compose("ps", "-q", service).strip()
        told = subprocess.run(
            ["docker", "inspect", "-f", "{{.State.Health.Status}}", container],
            capture_output=True,
            text=True,
            check=False,
        )
        return told.stdout.strip()

    def wait_until_healthy(self, services: Sequence[str]) -> None:
        """Raises AssertionError if one is not in time."""
        wait_for(
            lambda: all(self.health(service) == "healthy" for service in services),
            f"{', '.join(services)} to be healthy",
            timeout_s=START_S,
        )

    def sdk(self) -> openai.OpenAI:
        """The official client, which retries nothing: what is lost shows."""
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="any", max_retries=0
        )


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    ports = ("PORT", "ROUTER_PORT", "BATCH_PORT")
    told = {f"PENSTOCK_{name}": str(free_port()) for name in ports}
    environment = {
        **os.environ,
        **told,
        "FLOWER_PORT": str(free_port()),
        "REDIS_IMAGE": "redis:7-bookworm",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "",
    }
    one = Stack(f"penstocktest{os.getpid()}", int(told["PENSTOCK_PORT"]), environment)
    one.compose("build", "-q", "router-1", "worker-1", "batch", "gateway", "flower")
    try:
        one.compose("up", "-d", *OURS)
        one.wait_until_healthy(OURS)
        yield one
    finally:
        one.compose("down", "-v", "--remove-orphans", "-t", "5")


@dataclass(slots=True)
class Load:
    """Streams in threads until told to stop; keeps every failure."""

    stack: Stack
    done: int = 0
    failures: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        """One caller after another."""
        with self.stack.sdk() as sdk:
            while not self.stopping.is_set():
                self.done += 1
                prompt = f"def function_{number}_{self.done % 7}(path):\n"
                try:
                    chunks = list(
                        sdk.completions.create(
                            model=MODEL, prompt=prompt, max_tokens=48, temperature=0, stream=True
                        )
                    )
                    assert chunks[-1].choices[0].finish_reason in {"length", "stop"}
                except (openai.OpenAIError, AssertionError, IndexError) as error:
                    self.failures.append(repr(error))


@pytest.fixture
def load(stack: Stack) -> Iterator[Load]:
    running = Load(stack)
    threads = [threading.Thread(target=running.run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.stopping.set()
        for thread in threads:
            thread.join(DONE_S)


def test_images_hold_only_what_their_process_needs(capsys: pytest.CaptureFixture[str]) -> None:
    for name in IMAGES:
        shown = subprocess.run(
            ["docker", "image", "inspect", "-f", "{{.Size}} {{.Config.User}}", f"penstock-{name}"],
            capture_output=True,
            text=True,
            check=True,
        )
        size, user = shown.stdout.split()
        with capsys.disabled():
            sys.stdout.write(f" penstock-{name}: {int(size) >> 20} MiB")
        assert user == "penstock"
        found = subprocess.run(
            [
                "docker",
                "run",
                "--rm",
                "--entrypoint",
                "python",
                f"penstock-{name}",
                "-c",
                "import torch",
            ],
            capture_output=True,
            check=False,
        )
        assert (found.returncode == 0) == (name == "worker"), name


def test_a_request_and_a_batch_are_served(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    body = {"model": MODEL, "prompt": "import ", "max_tokens": 4, "temperature": 0}
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": body}
        for n in range(5)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")

    with stack.sdk() as sdk:
        answer = sdk.completions.create(model=MODEL, prompt="import ", max_tokens=4, temperature=0)
        with path.open("rb") as file:
            uploaded = sdk.files.create(file=file, purpose="batch")
        batch = sdk.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h"
        )
        wait_for(lambda: sdk.batches.retrieve(batch.id).status == "completed", "the batch", DONE_S)
        counts = sdk.batches.retrieve(batch.id).request_counts

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert counts is not None
    assert (counts.completed, counts.failed) == (5, 0)


def test_a_killed_worker_comes_back(stack: Stack) -> None:
    container = stack.compose("ps", "-q", "worker-1").strip()
    subprocess.run(["docker", "kill", "-s", "KILL", container], capture_output=True, check=True)

    with stack.sdk() as sdk:
        assert sdk.completions.create(model=MODEL, prompt="x = ", max_tokens=4).choices
    stack.compose("up", "-d", "worker-1")
    stack.wait_until_healthy(["worker-1"])


@pytest.mark.parametrize("service", ["router-1", "router-2", "worker-1", "worker-2", "batch"])
def test_a_rolling_restart_loses_no_request(stack: Stack, load: Load, service: str) -> None:
    wait_for(lambda: load.done > 8, "load", DONE_S)
    stack.compose("restart", "-t", "40", service)
    stack.wait_until_healthy([service])
    before = load.done
    wait_for(lambda: load.done > before + 8, "load afterwards", DONE_S)

    assert load.failures == []
