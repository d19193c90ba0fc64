"""What ships for operators is what its source says, and names only what exists."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from make_dashboards import files
from penstock_batch.settings import BatchSettings
from penstock_core.settings import ProcessSettings
from penstock_core.telemetry import semconv
from penstock_gateway.settings import GatewaySettings
from penstock_router.settings import RouterSettings
from penstock_worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
PROCESSES = ("router", "services", "batch")
COMPOSE = DEPLOY / "compose.yaml"
ALERTS = DEPLOY / "telemetry/alerts.yaml"
SETTINGS: tuple[type[ProcessSettings], ...] = (
    RouterSettings,
    WorkerSettings,
    BatchSettings,
    GatewaySettings,
)
OF_SECONDS = ("_seconds", "_seconds_bucket", "_seconds_sum", "_seconds_count", "_seconds_total")
SUFFIXES = ("", "_total", *OF_SECONDS, "_sum")


def emitted() -> set[str]:
    """Every name that Prometheus may see."""
    names = [value for value in vars(semconv).values() if isinstance(value, str)]
    return {name.replace(".", "_") + suffix for name in names for suffix in SUFFIXES}


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_dashboards_are_as_their_source_makes_them(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == files()[path], "run tools/make_dashboards.py"


@pytest.mark.parametrize("path", [*files(), ALERTS], ids=lambda path: path.name)
def test_queries_name_metrics_that_exist(path: Path) -> None:
    named = re.findall(r"\b(?:penstock|gen_ai|rpc|http)_[a-z_]+\b", path.read_text("utf-8"))

    labels = {"gen_ai_token_type", "gen_ai_request_model", "rpc_method", "rpc_status_code"}
    assert set(named) - emitted() - labels == set()


def test_every_instrument_is_on_a_dashboard() -> None:
    shown = "".join(files().values())
    sources = [
        path.read_text("utf-8") for name in PROCESSES for path in (ROOT / name).rglob("*.py")
    ]
    # Alone, or several in a row of which each names its unit.
    instrument = re.compile(r'create_\w+\(\s*sc\.([A-Z_]+)|\(sc\.([A-Z_]+), "[^"]*", ')
    made = {one or other for text in sources for one, other in instrument.findall(text)}
    # It measures nothing: its collection lets deferred measurements in.
    made.remove("DEFERRED")
    assert len(made) > 30
    missing = [n for n in made if getattr(semconv, n).replace(".", "_") not in shown]
    assert missing == []


def test_every_alert_says_what_to_do() -> None:
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"], rule["alert"]
            assert rule["annotations"]["runbook"], rule["alert"]
            assert rule["labels"]["severity"] in {"page", "ticket"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on PATH")
def test_promtool_accepts_the_alerts() -> None:
    done = subprocess.run(["promtool", "check", "rules", ALERTS], capture_output=True, check=False)

    assert done.returncode == 0, done.stderr


def test_compose_sets_only_settings_that_exist() -> None:
    known = {
        f"{settings.model_config.get('env_prefix')}{field}".upper()
        for settings in SETTINGS
        for field in settings.model_fields
    }
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    told = {name for one in services.values() for name in one.get("environment", {})}

    kinds = ("PENSTOCK_ROUTER_", "PENSTOCK_WORKER_", "PENSTOCK_BATCH_", "PENSTOCK_GATEWAY_")
    assert {name for name in told if name.startswith(kinds)} - known == set()


def test_compose_publishes_on_loopback_only_and_pins_every_image() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]

    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "build" in service or re.search(r":v?\d[\w.-]+\}?$", service["image"]), name
        if service["image"].startswith("penstock-") and name != "init":
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name
