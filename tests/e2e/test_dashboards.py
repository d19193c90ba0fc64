"""Every panel and every alert finds its data in a real Prometheus that scrapes a platform under load."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import openai
import pytest
import yaml

from penstock_testing.processes.platform import UpProcess, up, wait_for
from penstock_testing.processes.prometheus import Prometheus, is_installed, prometheus

pytestmark = [
    pytest.mark.process,
    pytest.mark.xdist_group("dashboards"),
    pytest.mark.skipif(not is_installed(), reason="no prometheus on PATH"),
]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ALERTS = DEPLOY / "telemetry/alerts.yaml"
PROMPT = "import os\n\n\ndef read_lines(path):\n" * 12

WriteLines = Callable[[Sequence[str]], Path]


def panel_queries() -> dict[str, str]:
    """Expressions by the page and title of their panel."""
    found = {}
    for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                name = f"{path.stem}: {panel['title']} {target['refId']}"
                found[name] = target["expr"].replace("$__rate_interval", "10s")
    return found


def alert_queries() -> dict[str, str]:
    """What alerts compare, without the comparison: that is false most of the time."""
    rules = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]
    return {
        f"alert {rule['alert']}": re.sub(
            r"\[\d+m\]", "[10s]", re.sub(r" (==|<|>) [\d.]+", "", rule["expr"])
        )
        for rule in rules
    }


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """A platform of its own, since everything is to be seen: drafts too."""
    options = ("--keys", "new", "--speculation", "auto", "--price", "1", "--budget", "1000")
    shadow = {"PENSTOCK_ROUTER_SHADOW_POLICY": "replication=0"}
    with up(tmp_path_factory.mktemp("dashboards"), *options, environment=shadow) as running:
        yield running


@pytest.fixture(scope="module")
def scraper(platform: UpProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    addresses = json.loads((platform.data_dir / "platform.json").read_text(encoding="utf-8"))
    jobs = {**addresses["metrics"], "gateway": addresses["gateway"]}
    with prometheus(tmp_path_factory.mktemp("prometheus"), jobs, ALERTS) as running:
        yield running


def drive(sdk: openai.OpenAI, model: str, batch_file: Path) -> None:
    """A bit of everything that panels show."""
    for number in range(4):
        sdk.completions.create(
            model=model, prompt=f"{PROMPT}{number % 2}", max_tokens=24, temperature=0
        )
        sdk.completions.create(
            model=model, prompt="x", max_tokens=4, seed=1, extra_body={"response_cache": "use"}
        )
    with pytest.raises(openai.BadRequestError):
        sdk.completions.create(model=model, prompt="x", max_tokens=10**6)
    with batch_file.open("rb") as file:
        uploaded = sdk.files.create(file=file, purpose="batch")
    sdk.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h"
    )


@pytest.mark.timeout(240)
def test_every_query_returns_data(
    scraper: Prometheus, sdk: openai.OpenAI, model: str, batch_file: WriteLines
) -> None:
    missing = {**panel_queries(), **alert_queries()}
    assert len(missing) > 30
    path = batch_file(["def f(", "import "])

    def all_found() -> bool:
        drive(sdk, model, path)
        for name in [n for n, expression in missing.items() if scraper.query(expression)]:
            del missing[name]
        return not missing

    try:
        wait_for(all_found, "data of every query", timeout_s=120)
    except AssertionError as error:
        raise AssertionError(f"no data: {missing}") from error

    kept = scraper.exemplars("gen_ai_server_time_to_first_token_seconds_bucket")
    assert kept
    assert all(len(labels["trace_id"]) == 32 for labels in kept)
