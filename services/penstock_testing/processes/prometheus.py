"""A real Prometheus that scrapes a running platform. Needs the ``prometheus`` binary on PATH."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock_testing.processes.platform import wait_for
from penstock_testing.processes.ports import free_port

_STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server; ``url`` is its base."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of an expression. Raises AssertionError with its complaint."""
        text = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?{text}", timeout=10) as answer:
                document = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        data = document["data"]
        return data["result"] if data["resultType"] == "vector" else [data]

    def exemplars(self, expression: str) -> list[dict[str, str]]:
        """Labels of the exemplars of a minute's samples."""
        now = time.time()
        asked = {"query": expression, "start": str(now - 60), "end": str(now + 1)}
        text = urllib.parse.urlencode(asked)
        with urllib.request.urlopen(f"{self.url}/api/v1/query_exemplars?{text}", timeout=10) as got:
            series = json.load(got)["data"]
        return [exemplar["labels"] for one in series for exemplar in one["exemplars"]]


def is_installed() -> bool:
    """Whether there is a Prometheus to start."""
    return shutil.which("prometheus") is not None


@contextmanager
def prometheus(folder: Path, jobs: Mapping[str, str], rules: Path) -> Iterator[Prometheus]:
    """Scrape ``host:port`` by job's name once a second, until the context ends."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "prometheus.json"  # JSON is YAML
    scrapes = [{"job_name": job, "static_configs": [{"targets": [at]}]} for job, at in jobs.items()]
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(rules)],
                "scrape_configs": scrapes,
            }
        ),
        encoding="utf-8",
    )
    listen = f"127.0.0.1:{free_port()}"
    argv = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={listen}",
        "--enable-feature=exemplar-storage",
    ]
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen(argv, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(lambda: _is_ready(listen), "Prometheus to be ready")
            yield Prometheus(f"http://{listen}")
        finally:
            process.terminate()
            process.wait(_STOP_TIMEOUT_S)


def _is_ready(listen: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{listen}/-/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
