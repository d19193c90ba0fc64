"""``penstock doctor`` over real processes: quiet where all is well, and each real fault is named."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis import Redis

from penstock_core.registry import RedisRegistry, WorkerEntry
from penstock_testing.processes.deployment import Deployment, deployment
from penstock_testing.processes.ports import free_port

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

NO_CHANGES: Mapping[str, Mapping[str, str]] = {}


@asynccontextmanager
async def deployed(changes: Mapping[str, Mapping[str, str]]) -> AsyncIterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="pk-") as name:
        async with deployment(Path(name), changes=changes) as running:
            await running.live()
            yield running


async def doctor(running: Deployment, *arguments: str) -> tuple[int, list[dict[str, str]]]:
    """The exit status and what is wrong."""
    services = running.services
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "penstock_cli", "doctor", "--json", "--timeout-s", "20"),
        *("--target", ",".join(router.address for router in running.routers)),
        *("--batch-target", services["batch"].address, "--gateway", services["gateway"].address),
        *("--redis-url", running.redis.url),
        *("--metrics", f"batch-worker={services['batch-worker'].metrics}"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")},
            "PENSTOCK_DOCTOR_LEASE_SECRET": running.lease_secret,
        },
    )
    async with asyncio.timeout(120):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(out)["findings"]


def wrong(findings: list[dict[str, str]], check: str, level: str = "problem") -> str:
    """All that is wrong by one check; each says what to do."""
    found = [f for f in findings if (f["check"], f["level"]) == (check, level)]
    assert all(f["fix"] for f in found)
    return "\n".join(f["message"] for f in found)


async def test_a_healthy_deployment_gets_a_clean_bill() -> None:
    async with deployed(NO_CHANGES) as running:
        status, findings = await doctor(running)

    assert [f for f in findings if f["level"] != "ok"] == []
    assert status == 0
    told = {f["check"]: f["message"] for f in findings}
    assert told["reachability"] == "7 of 7 processes answer and are ready"
    assert told["index"] == "4 indexes equal what their workers hold"
    assert told["secrets"] == "4 leases were accepted by their workers"
    assert told["registry"] == "2 announced workers are there and followed"
    assert set(told) >= {"clocks", "versions", "Redis", "models", "workers"}


async def test_secrets_that_differ_and_open_workers_are_named() -> None:
    changes = {
        "router-2": {"CACHE_SECRET": "another"},
        "worker-2": {"LEASE_SECRET": ""},
    }
    async with deployed(changes) as running:
        status, findings = await doctor(running, "--keys-file", "/no/such/keys.json")

    assert status == 1
    secrets = wrong(findings, "secrets")
    assert "salt the same tenant differently" in secrets
    assert wrong(findings, "secrets", "warning") == "worker worker-2 serves whoever reaches it"
    assert "/no/such/keys.json" in wrong(findings, "API keys")


async def test_dead_stopped_and_misannounced_processes_and_a_forgetful_redis_are_named() -> None:
    async with deployed(NO_CHANGES) as running:
        async with RedisRegistry(running.redis.url) as registry:
            await registry.announce(WorkerEntry(f"127.0.0.1:{free_port()}", "ghost"))
        await running.services["batch"].stop(signal.SIGKILL)
        await running.services["worker-2"].stop(signal.SIGKILL)
        with Redis.from_url(running.redis.url) as redis:
            for worker_id in ("ghost", "worker-2"):  # announced for as long as the look takes
                assert redis.persist(f"penstock:worker:{worker_id}")
            redis.config_set("maxmemory-policy", "allkeys-lru")
            redis.config_set("appendonly", "no")
        status, findings = await doctor(running)

    assert status == 1
    assert "batch service does not answer: UNAVAILABLE" in wrong(findings, "reachability")
    assert "as DEAD" in wrong(findings, "workers")
    assert "allkeys-lru" in wrong(findings, "Redis")
    assert "appendonly is off" in wrong(findings, "Redis", "warning")
    registered = wrong(findings, "registry")
    assert "worker ghost is announced at" in registered
    assert "worker worker-2 is announced at" in registered


async def test_nothing_running_is_told_and_never_a_traceback() -> None:
    where = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "penstock_cli", "doctor", "--target", where),
        *("--batch-target", where, "--gateway", where, "--redis-url", f"redis://:pw@{where}/0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()

    assert process.returncode == 1
    assert b"router does not answer" in out
    assert b"gateway does not answer" in out
    assert b"pw" not in out
    assert b"Traceback" not in out
