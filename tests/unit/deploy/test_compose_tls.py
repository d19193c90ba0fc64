"""TLS in compose: what is laid over the compose file fits it, and the certificates are good ones."""

import importlib.util
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from penstock_core.tls import Tls, client_context

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
FILES = {"ca.pem", "server.crt", "server.key", "client.crt", "client.key"}
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH")


def script(name: str) -> ModuleType:
    """A script that runs in a container, which is in no package."""
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"docker/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def services(name: str) -> Mapping[str, Mapping[str, Any]]:
    told = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))["services"]
    assert isinstance(told, dict)
    return told


def subject_names(certificate: Path) -> str:
    command = ["openssl", "x509", "-noout", "-ext", "subjectAltName,extendedKeyUsage", "-in"]
    return subprocess.run(
        [*command, certificate], capture_output=True, text=True, check=True
    ).stdout


def test_every_process_of_ours_gets_certificates_and_mutual_tls() -> None:
    base, over = services("compose.yaml"), services("compose.tls.yaml")
    assert set(over) <= set(base)
    for name, service in base.items():
        kinds = {"ROUTER", "WORKER", "BATCH", "GATEWAY"} & {
            variable.split("_")[1]
            for variable in service.get("environment", {})
            if variable.startswith("PENSTOCK_")
        }
        if not kinds or name == "flower":  # which calls nobody but Redis
            continue
        environment = over[name]["environment"]
        prefix = f"PENSTOCK_{kinds.pop()}_TLS"
        assert environment[f"{prefix}_CERT"] == "/run/penstock/tls/server.crt", name
        assert environment[f"{prefix}_CA"] == "/run/penstock/tls/ca.pem", name
        if name != "gateway":  # its own clients come over HTTPS
            assert environment[f"{prefix}_CLIENT_AUTH"].endswith("-true}"), name


def test_health_checks_and_the_doctor_ask_over_https() -> None:
    base, over = services("compose.yaml"), services("compose.tls.yaml")
    for name, service in base.items():
        test = str(service.get("healthcheck", {}).get("test", ""))
        if "http://" in test and name != "flower":
            assert "https://" in str(over[name]["healthcheck"]["test"]), name
    plain, tls = (str(found["doctor"]["command"]) for found in (base, over))
    https = plain.replace("=gateway", "=https://gateway")
    assert https.replace("=batch-worker:", "=https://batch-worker:") == tls


def test_prometheus_scrapes_the_same_with_tls_as_without() -> None:
    plain, tls = (
        yaml.safe_load((DEPLOY / f"telemetry/{name}").read_text(encoding="utf-8"))["scrape_configs"]
        for name in ("prometheus.yaml", "prometheus.tls.yaml")
    )

    def targets(jobs: list[dict[str, Any]], kind: str) -> list[str]:
        return sorted(str(found) for job in jobs for found in job.get(f"{kind}_configs", ()))

    for kind in ("static", "dns_sd"):
        assert targets(plain, kind) == targets(tls, kind)
    assert {job["scheme"] for job in tls} == {"https"}
    assert {job["tls_config"]["cert_file"] for job in tls} == {"/etc/prometheus/tls/client.crt"}


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no Compose 1.29 on PATH")
@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.tls.yaml"]])
def test_compose_reads_the_files(files: list[str]) -> None:
    chosen = [part for name in files for part in ("-f", str(DEPLOY / name))]
    done = subprocess.run(
        ["docker-compose", *chosen, "config", "-q"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@needs_openssl
def test_certificates_are_made_once_for_every_name_and_their_authority_is_gone(
    tmp_path: Path,
) -> None:
    certificates, kept = script("certificates"), tmp_path / "kept"
    certificates.bring(tmp_path / "none", kept)
    made = {path.name: path.read_bytes() for path in kept.iterdir()}
    certificates.bring(tmp_path / "none", kept)

    assert set(made) == FILES
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == made
    told = subject_names(kept / "server.crt")
    for name in [*services("compose.tls.yaml"), "localhost"]:
        if name not in {"init", "doctor", "prometheus"}:
            assert f"DNS:{name}" in told
    assert "IP Address:127.0.0.1" in told
    for name in ("server", "client"):
        tls = Tls(str(kept / f"{name}.crt"), str(kept / f"{name}.key"), str(kept / "ca.pem"))
        tls.check()
        client_context(tls)
        verify = ["openssl", "verify", "-CAfile", tls.ca, tls.cert]
        assert subprocess.run(verify, capture_output=True, check=False).returncode == 0


@needs_openssl
def test_the_operators_certificates_are_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    certificates, given, kept = script("certificates"), tmp_path / "given", tmp_path / "kept"
    given.mkdir()
    for name in FILES:
        (given / name).write_text(name, encoding="utf-8")
    certificates.bring(given, kept)
    taken = {path.name: path.read_text() for path in kept.iterdir()}
    (given / "client.key").unlink()
    with pytest.raises(SystemExit, match=r"client\.key"):
        certificates.bring(given, kept)

    assert taken == {name: name for name in FILES}


def test_redis_speaks_tls_alone_or_not_at_all() -> None:
    init = script("init")
    plain, tls = init.redis_files("pw", tls=False), init.redis_files("pw", tls=True)

    assert set(plain) == set(tls)
    assert plain["redis.conf"] == "requirepass pw\n"
    assert {"port 0", "tls-port 6379", "requirepass pw"} <= set(tls["redis.conf"].splitlines())
    assert plain["penstock_batch_redis_url"] == "redis://:pw@redis:6379/0"
    assert tls["penstock_router_registry_url"].startswith("rediss://:pw@redis:6379/0?ssl_ca_certs=")
