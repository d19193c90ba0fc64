"""The images and the compose file, in a real Docker engine: everything but what only a registry has."""

import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest

from penstock_testing.processes.platform import wait_for
from penstock_testing.processes.ports import free_port

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
SERVICES = ("redis", *OURS, "prometheus")
TARGETS = 7
BASES = ("python:3.11-slim-bookworm", "redis:7-bookworm", "prom/prometheus:latest")
IMAGES = ("router", "worker", "batch", "gateway", "flower")
MODEL = "penstock-demo"
# A machine that is busy with other things only makes all of it slower.
START_S, DONE_S = 900, 600
BATCH_LINES = 24


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
        ["docker", "image", "inspect", *BASES],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


pytestmark = [
    pytest.mark.compose,
    pytest.mark.xdist_group("compose"),
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not has_engine(), reason="no Docker engine with the base images"),
]


@dataclass(frozen=True, slots=True)
class Stack:
    """A project of its own; ``port`` is the gateway's, ``prometheus`` that of Prometheus."""

    project: str
    port: int
    prometheus: int
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

    def sdk(self, max_retries: int = 0) -> openai.OpenAI:
        """The official client, which retries nothing: what is lost shows."""
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1",
            api_key="any",
            max_retries=max_retries,
            timeout=DONE_S,
        )

    def container(self, service: str) -> str:
        """Its id."""
        return self.compose("ps", "-q", service).strip()

    def scraped(self) -> int:
        """Processes that Prometheus reaches."""
        url = f"http://127.0.0.1:{self.prometheus}/api/v1/query?query=sum(up)"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)["data"]["result"]
        except OSError:
            return 0
        return int(found[0]["value"][1]) if found else 0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    ours = {f"PENSTOCK_{name}": str(free_port()) for name in ("PORT", "ROUTER_PORT", "BATCH_PORT")}
    theirs = {name: str(free_port()) for name in ("FLOWER_PORT", "PROMETHEUS_PORT")}
    environment = {
        **os.environ,
        **ours,
        **theirs,
        "REDIS_IMAGE": "redis:7-bookworm",
        "PROMETHEUS_IMAGE": "prom/prometheus:latest",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "",
    }
    ports = int(ours["PENSTOCK_PORT"]), int(theirs["PROMETHEUS_PORT"])
    one = Stack(f"penstocktest{os.getpid()}", *ports, environment)
    one.compose("build", "-q", "router-1", "worker-1", "batch", "gateway", "flower", "doctor")
    try:
        one.compose("up", "-d", *SERVICES)
        one.wait_until_healthy(OURS)
        yield one
    except BaseException:
        sys.stderr.write(one.compose("logs", "--tail", "40"))
        raise
    finally:
        one.compose("down", "-v", "--remove-orphans", "-t", "5")


@dataclass(slots=True)
class Load:
    """Streams in threads until told to stop; keeps every failure."""

    stack: Stack
    # Somebody who finds the gateway itself away asks again, as SDKs do by themselves.
    max_retries: int = 0
    done: int = 0
    failures: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        """One caller after another."""
        with self.stack.sdk(self.max_retries) as sdk:
            while not self.stopping.is_set():
                prompt = f"def function_{number}_{self.done % 7}(path):\n"
                try:
                    chunks = list(
                        sdk.completions.create(
                            model=MODEL, prompt=prompt, max_tokens=48, temperature=0, stream=True
                        )
                    )
                    assert chunks[-1].choices[0].finish_reason in {"length", "stop"}
                except (openai.OpenAIError, httpx.HTTPError, AssertionError, IndexError) as error:
                    self.failures.append(repr(error))
                self.done += 1

    def goes_on(self, count: int = 8) -> None:
        """Wait until so many more were answered."""
        wanted = self.done + count
        wait_for(lambda: self.done >= wanted, "load", DONE_S)


@contextmanager
def under_load(stack: Stack, max_retries: int = 0) -> Iterator[Load]:
    running = Load(stack, max_retries)
    threads = [threading.Thread(target=running.run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        running.goes_on()
        yield running
        running.goes_on()
    finally:
        running.stopping.set()
        for thread in threads:
            thread.join(DONE_S)
    assert running.failures == []


def submitted(sdk: openai.OpenAI, tmp_path: Path, count: int = BATCH_LINES) -> str:
    """The id of a new batch."""
    path = tmp_path / "lines.jsonl"
    lines = [
        {
            "custom_id": str(n),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": MODEL, "prompt": f"x_{n} = ", "max_tokens": 8, "temperature": 0},
        }
        for n in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with path.open("rb") as file:
        uploaded = sdk.files.create(file=file, purpose="batch")
    return sdk.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h"
    ).id


def check_batch(sdk: openai.OpenAI, batch_id: str, count: int = BATCH_LINES) -> None:
    """Every line is answered, once."""
    wait_for(lambda: sdk.batches.retrieve(batch_id).status == "completed", "the batch", DONE_S)
    output = sdk.batches.retrieve(batch_id).output_file_id
    assert output is not None
    answers = [json.loads(line) for line in sdk.files.content(output).text.splitlines()]
    assert sorted(a["custom_id"] for a in answers) == sorted(str(n) for n in range(count))
    assert {a["response"]["status_code"] for a in answers} == {200}


@pytest.mark.usefixtures("stack")
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
    with stack.sdk() as sdk:
        answer = sdk.completions.create(model=MODEL, prompt="import ", max_tokens=4, temperature=0)
        check_batch(sdk, submitted(sdk, tmp_path))

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_prometheus_scrapes_every_process_and_flower_is_there(stack: Stack) -> None:
    wait_for(lambda: stack.scraped() == TARGETS, "all targets to be up", DONE_S)
    port = stack.environment["FLOWER_PORT"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=30) as answer:
        assert answer.status == 200


def test_the_doctor_finds_nothing_that_must_be_fixed(stack: Stack) -> None:
    # Fails by itself if there is a problem; a warning (an old Redis) is none.
    told = stack.compose("run", "--rm", "-T", "doctor")
    for check in ("reachability", "clocks", "versions", "registry", "workers", "index", "secrets"):
        assert check in told


def test_a_worker_killed_under_load_costs_no_request_and_comes_back(
    stack: Stack, tmp_path: Path
) -> None:
    with under_load(stack), stack.sdk() as sdk:
        batch = submitted(sdk, tmp_path)
        container = stack.container("worker-1")
        subprocess.run(["docker", "kill", "-s", "KILL", container], capture_output=True, check=True)
        check_batch(sdk, batch)
        stack.compose("up", "-d", "worker-1")
        stack.wait_until_healthy(["worker-1"])


@pytest.mark.parametrize("service", ["redis", *(name for name in OURS if name != "flower")])
def test_a_rolling_restart_loses_no_request(stack: Stack, service: str, tmp_path: Path) -> None:
    # Only who calls the gateway itself can notice that it is away.
    max_retries = 30 if service == "gateway" else 0
    with under_load(stack, max_retries), stack.sdk(max_retries=30) as sdk:
        batch = submitted(sdk, tmp_path)
        stack.compose("restart", "-t", "60", service)
        if service in OURS:
            stack.wait_until_healthy([service])
        check_batch(sdk, batch)
