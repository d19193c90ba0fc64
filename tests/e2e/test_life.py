"""How `penstock up` and `penstock demo` begin and end."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from penstock_client import AsyncBatchClient, Client
from penstock_core.errors import Rejected
from penstock_testing.processes.platform import has_ended, up, wait_for

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("platform")]


def test_nothing_is_left_running_however_it_ends_and_a_stale_folder_is_fine(
    tmp_path: Path,
) -> None:
    with up(tmp_path, "--workers", "1") as killed:
        orphans = killed.children()
        killed.process.kill()
        wait_for(lambda: all(has_ended(child) for child in orphans), "the children to go")
    assert len(orphans) >= 6
    (tmp_path / "platform.json").unlink()

    with up(tmp_path, "--workers", "1") as interrupted:
        with Client(interrupted.router) as client:
            assert client.generate("import os", max_tokens=2).usage.completion_tokens == 2
        children = interrupted.children()
        assert interrupted.stop(signal.SIGINT) == 0
    assert all(has_ended(child) for child in children)
    assert not (tmp_path / "platform.json").exists()


def test_platform_comes_back_when_every_process_is_killed(tmp_path: Path) -> None:
    with up(tmp_path, "--workers", "1") as platform, Client(platform.router) as client:
        killed = platform.children()
        for child in killed:
            child.kill()
        wait_for(lambda: all(has_ended(child) for child in killed), "the children to die")

        def answered() -> bool:
            try:
                return client.generate("import os", max_tokens=2).usage.completion_tokens == 2
            except Rejected:
                return False

        wait_for(answered, "an answer", timeout_s=60)
        requests = tmp_path / "requests.jsonl"
        requests.write_text("\n".join(two_lines()), encoding="utf-8")
        assert asyncio.run(completed_lines(platform.batch, requests)) == 2
        wait_for(lambda: len(platform.children()) == len(killed), "all to be back")


def two_lines() -> list[str]:
    body = {"model": "penstock-demo", "prompt": "import os", "max_tokens": 2}
    line = {"method": "POST", "url": "/v1/completions", "body": body}
    return [json.dumps({"custom_id": name, **line}) for name in ("a", "b")]


async def completed_lines(target: str, path: Path) -> int:
    async with AsyncBatchClient(target) as client, asyncio.timeout(60):
        uploaded = await client.upload(path)
        batch = await client.create(uploaded.id, "/v1/completions")
        states = [state async for state in client.watch(batch.id)]
    return states[-1].counts.completed


def test_taken_port_is_one_sentence_and_status_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        argv = (sys.executable, "-m", "penstock_cli", "up", "--port", port)
        done = subprocess.run(
            [*argv, "--data-dir", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port} for the gateway" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_process_that_cannot_start_is_told_with_its_log_and_stops_the_rest(tmp_path: Path) -> None:
    free_ports = ("--port", "0", "--router-port", "0", "--batch-port", "0")
    argv = (sys.executable, "-m", "penstock_cli", "up", *free_ports, "--data-dir", str(tmp_path))
    with subprocess.Popen(
        [*argv, "--model", "/no/such/model", "--workers", "1"], stderr=subprocess.PIPE, text=True
    ) as process:
        _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "worker-0 exited with status 1 at its start" in said
    assert "there is no model directory /no/such/model" in said
    ours = str(tmp_path).encode()
    assert not [p for p in psutil.process_iter() if ours in _environment(p)]


def _environment(process: psutil.Process) -> bytes:
    try:
        return Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:
        return b""


def test_demo_shows_a_cache_hit_and_a_whole_batch(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "OTEL_"))}
    done = subprocess.run(
        [sys.executable, "-m", "penstock_cli", "demo", "--json", "--output-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env=environment,
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    first, second = report["runs"]
    assert first["prompt_tokens"] > 64
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] > 0
    assert second["text"] == first["text"]
    assert second["reason"]
    batch = report["batch"]
    assert (batch["status"], batch["answered"]) == ("completed", 64)
    answers = Path(batch["output_path"]).read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["custom_id"] for line in answers}) == 64
