"""What is secret stands in no log, no span and no error of any process."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from penstock_client import Client
from penstock_core.errors import PenstockError
from penstock_testing.processes.platform import up, wait_for
from penstock_testing.servers.otlp import otlp_receiver

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("platform")]

WRONG = "pk-sentinel-that-nobody-may-ever-read-4711"
PROMPT = "sentinel prompt zyxwvut"
SECRETS = ("LEASE_SECRET", "CACHE_SECRET", "SERVICE_KEY")


def secrets_of(process: psutil.Process) -> set[str]:
    found = process.environ()
    return {v for k, v in found.items() if k.startswith("PENSTOCK_") and k.endswith(SECRETS) and v}


def answer(url: str, key: str, body: object = None) -> str:
    """The body of an answer, whatever its status."""
    data = json.dumps(body).encode() if body is not None else None
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as got:
            return str(got.read())
    except urllib.error.HTTPError as error:
        with error:
            return str(error.read()) + str(error.headers)


def test_secrets_stand_in_no_log_no_span_and_no_error(tmp_path: Path) -> None:
    answers: list[str] = []
    with (
        otlp_receiver() as received,
        up(
            tmp_path / "data", "--keys", "new", "--workers", "1",
            environment={
                "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
                "OTEL_BSP_SCHEDULE_DELAY": "1000",
            },
        ) as platform,
    ):  # fmt: skip
        key, base = platform.api_key, f"http://{platform.gateway}/v1"
        asked = {"model": "penstock-demo", "prompt": PROMPT, "max_tokens": 4}
        secrets = {key, WRONG}.union(*(secrets_of(child) for child in platform.children()))
        for credential in (key, WRONG):
            for path, body in (("/completions", asked), ("/models", None), ("/files/x", None),
                               ("/completions", {**asked, "max_tokens": -1})):  # fmt: skip
                answers.append(answer(base + path, credential, body))
            with Client(platform.router, api_key=credential) as client:
                for mistaken in ("no-such-model", "penstock-demo"):
                    try:
                        client.generate(PROMPT, model=mistaken, max_tokens=2)
                    except PenstockError as error:
                        answers.append(f"{error!r} {error.metadata}")
        wait_for(lambda: any(s.service == "penstock-worker" for s in received.spans()), "spans")
        platform.stop()
        # What `up` itself says shows the callers' key to who started it; no process may.
        logs = "".join(
            path.read_text(encoding="utf-8", errors="replace")
            for path in (tmp_path / "data/logs").iterdir()
        )
    everything = {"logs": logs, "spans": repr(received.spans()), "errors": " ".join(answers)}
    assert len(secrets) >= 4
    for place, text in everything.items():
        assert not [s for s in secrets if s in text], f"a secret in {place}"
    assert PROMPT not in everything["logs"] + everything["spans"]
