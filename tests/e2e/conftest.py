"""One platform for all tests that only use it."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import openai
import pytest

from penstock_testing.processes.platform import UpProcess, up
from penstock_testing.servers.otlp import OtlpReceiver, otlp_receiver


@pytest.fixture(scope="session")
def receiver() -> Iterator[OtlpReceiver]:
    """Where the platform's processes send traces and metrics."""
    with otlp_receiver() as running:
        yield running


@pytest.fixture(scope="session")
def platform(
    receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UpProcess]:
    """Two workers, callers need a key."""
    exports = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "1000",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
    }
    data_dir = tmp_path_factory.mktemp("platform")
    with up(data_dir, "--keys", "new", environment=exports) as running:
        yield running


@pytest.fixture
def sdk(platform: UpProcess) -> Iterator[openai.OpenAI]:
    """The official SDK; it retries nothing, so that what is wrong shows."""
    base_url = f"http://{platform.gateway}/v1"
    with openai.OpenAI(base_url=base_url, api_key=platform.api_key, max_retries=0) as client:
        yield client


@pytest.fixture
def model(sdk: openai.OpenAI) -> str:
    """The model that is served."""
    return sdk.models.list().data[0].id


WriteLines = Callable[[Sequence[str]], Path]


@pytest.fixture
def batch_file(tmp_path: Path, model: str) -> WriteLines:
    """Writes a batch's input file: one completion for each prompt."""

    def write(prompts: Sequence[str]) -> Path:
        path = tmp_path / "requests.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number, prompt in enumerate(prompts):
                body = {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0}
                line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/completions"}
                file.write(json.dumps({**line, "body": body}) + "\n")
        return path

    return write
