"""What things cost, on a whole platform with a price: told by every face of it, and limited by a budget."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from penstock_testing.processes.platform import UpProcess, up, wait_for

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("costs")]

# A second of a worker is a dollar, so that the budget lasts for two seconds of work.
PRICE, BUDGET = "3600", "2"
WriteLines = Callable[[Sequence[str]], Path]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    options = ("--workers", "1", "--keys", "new", "--price", PRICE, "--budget", BUDGET)
    with up(tmp_path_factory.mktemp("costs"), *options) as running:
        yield running


def penstock(platform: UpProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    target = (
        ("--batch-target", platform.batch)
        if arguments[0] == "batch"
        else ("--target", platform.router)
    )
    command = (
        sys.executable,
        "-m",
        "penstock_cli",
        *arguments,
        *target,
        "--api-key",
        platform.api_key,
    )
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def complete(platform: UpProcess, max_tokens: int) -> httpx.Response:
    return httpx.post(
        f"http://{platform.gateway}/v1/completions",
        json={
            "model": "penstock-demo",
            "prompt": "import os",
            "max_tokens": max_tokens,
            "ignore_eos": True,
        },
        headers={"authorization": f"Bearer {platform.api_key}"},
        timeout=60,
    )


@pytest.mark.timeout(180)
def test_every_face_of_the_platform_tells_what_things_cost(
    platform: UpProcess, batch_file: WriteLines
) -> None:
    assert "USD" in penstock(platform, "generate", "import os", "-n", "4").stderr
    online = complete(platform, 4).json()["penstock"]["cost"]
    submitted = penstock(
        platform, "batch", "submit", str(batch_file(["def f(", "def f("])), "--watch", "--json"
    )
    batch = json.loads(submitted.stdout)["cost"]
    assert online["micros"] > 0
    assert float(batch["amount"]) > 0
    assert "USD" in penstock(platform, "batch", "status", json.loads(submitted.stdout)["id"]).stdout

    def costs() -> list[dict[str, str]]:
        return list(json.loads(penstock(platform, "cost", "--json").stdout)["costs"])

    wait_for(lambda: sum(int(c["requests"]) for c in costs()) == 3, "all that was booked")
    (row,) = costs()
    assert (row["tenant"], row["model"], row["currency"]) == ("default", "penstock-demo", "USD")
    assert float(row["amount"]) > online["micros"] / 1e6 + float(batch["amount"])
    table = penstock(platform, "cost").stdout
    assert "2.00 USD a month" in table

    refused: list[httpx.Response] = []

    def is_refused() -> bool:
        refused[:] = [complete(platform, 128)]
        return bool(refused[0].status_code == 429)

    wait_for(is_refused, "the budget's end")
    error = refused[0].json()["error"]
    assert (error["code"], "budget" in error["message"]) == ("insufficient_quota", True)
    assert "2.00 USD a month" in penstock(platform, "cost").stdout, "who is refused may look why"
