"""The real process with the demo model: starts, serves a plain stub, ends in good order."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import pytest

from penstock.inference.v1 import generate_pb2
from penstock.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from penstock_core.errors import PromptTooLong
from penstock_core.rpc import server as rpc
from penstock_core.rpc.status import from_rpc_error
from penstock_testing.callers.calls import Transcript

pytestmark = pytest.mark.process
PROMPT = "import os\n\n\ndef read_file(path):\n    " * 3


@dataclass(slots=True)
class Process:
    """A worker process and what it has logged."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    logged: threading.Condition = field(default_factory=threading.Condition)

    def follow(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            with self.logged:
                self.lines.append(line)
                self.logged.notify_all()

    def find(self, pattern: str, timeout_s: float = 60) -> str:
        """The first group of a pattern in the log, waited for."""

        def match() -> re.Match[str] | None:
            return re.search(pattern, "".join(self.lines))

        with self.logged:
            assert self.logged.wait_for(match, timeout_s), f"no {pattern} in {self.lines}"
        found = match()
        assert found is not None
        return found[1]


@contextmanager
def worker_process(**settings: str) -> Iterator[Process]:
    environment = {
        **os.environ,
        "PENSTOCK_WORKER_LISTEN": "127.0.0.1:0",
        "PENSTOCK_WORKER_KV_MEMORY_MIB": "16",
        **{f"PENSTOCK_WORKER_{name}": value for name, value in settings.items()},
    }
    popen = subprocess.Popen(
        [sys.executable, "-m", "penstock_worker"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process = Process(popen)
    reader = threading.Thread(target=process.follow)
    reader.start()
    try:
        yield process
    finally:
        popen.kill()
        popen.wait()
        reader.join()
        for pipe in (popen.stdout, popen.stderr):
            assert pipe is not None
            pipe.close()


def ask(text: str, max_tokens: int) -> generate_pb2.GenerateRequest:
    request = generate_pb2.GenerateRequest(model="penstock-demo", text=text)
    request.sampling.temperature = 0
    request.stop.max_tokens = max_tokens
    return request


def test_the_demo_model_is_served_and_a_term_signal_lets_it_finish() -> None:
    with worker_process(METRICS_LISTEN="127.0.0.1:0") as process:
        endpoint = process.find(r"serves on (\S+?)\"")
        metrics_port = process.find(r"metrics on port (\d+)")
        with rpc.sync_channel(endpoint) as channel:
            stub = InferenceServiceStub(channel)
            cold, warm = Transcript(), Transcript()
            for transcript in (cold, warm):
                for response in stub.Generate(ask(PROMPT, 24), timeout=60):
                    transcript.add(response)
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.Generate(ask("x = 1\n" * 5000, 24), timeout=60))
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
                scraped = answer.read().decode()

            running = stub.Generate(ask(PROMPT, 200), timeout=60)
            ending = Transcript()
            ending.add(next(running))
            process.popen.send_signal(signal.SIGTERM)
            for response in running:
                ending.add(response)
        status = process.popen.wait(timeout=60)
        assert process.popen.stdout is not None
        printed = process.popen.stdout.read()

    assert status == 0
    assert printed == ""
    assert all(json.loads(line)["service"] == "penstock-worker" for line in process.lines)
    assert cold.text() == warm.text() != ""
    assert cold.started is not None
    assert cold.started.cached_tokens == 0
    assert warm.completed is not None
    assert warm.completed.usage.cached_tokens > 0
    assert ending.completed is not None
    assert ending.tokens()[:24] == cold.tokens()
    assert isinstance(from_rpc_error(refused.value), PromptTooLong)
    assert "gen_ai_server_time_to_first_token" in scraped
    assert "penstock_engine_capacity_blocks" in scraped


def test_a_missing_model_is_told_in_one_line() -> None:
    with worker_process(MODEL="/no/such/model") as process:
        process.find("(there is no model directory /no/such/model)")
        status = process.popen.wait(timeout=60)

    assert status == 1
    assert "Traceback" not in "".join(process.lines)
