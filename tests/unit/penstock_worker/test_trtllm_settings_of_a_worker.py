"""The worker's command line and variables for the engine trtllm."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock_core.settings import SettingsError
from penstock_worker.__main__ import main
from penstock_worker.arguments import UsageError, parse_arguments
from penstock_worker.settings import WorkerSettings
from penstock_worker.trtllm import trtllm_settings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "engine.yaml"
    file.write_text("model: demo\nmax_batch_size: 7\nmax_seq_len: 100\n")
    return file


def test_the_command_line_names_engine_and_file() -> None:
    assert parse_arguments(["--engine", "trtllm", "--config", "a"]) == {
        "engine": "trtllm",
        "config": "a",
    }
    assert parse_arguments([]) == {}


@pytest.mark.parametrize(
    "arguments", [["--engine", "x"], ["--listen", "x"], ["--conf", "x"], ["x"]]
)
def test_other_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="--help"):
        parse_arguments(arguments)


def test_variables_override_the_file(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    monkeypatch.setenv("PENSTOCK_WORKER_MAX_BATCH", "3")
    monkeypatch.setenv("PENSTOCK_WORKER_MAX_CONTEXT_TOKENS", "0")
    monkeypatch.setenv("PENSTOCK_WORKER_CONFIG", str(config))

    chosen = trtllm_settings(WorkerSettings.from_environment())

    assert (chosen.max_batch_size, chosen.max_seq_len) == (3, 100)


def test_defaults_of_variables_do_not(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    monkeypatch.setenv("PENSTOCK_WORKER_CONFIG", str(config))

    assert trtllm_settings(WorkerSettings.from_environment()).max_batch_size == 7


def test_the_native_engines_variables_are_refused(
    monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    monkeypatch.setenv("PENSTOCK_WORKER_CONFIG", str(config))
    monkeypatch.setenv("PENSTOCK_WORKER_SPECULATION", "ngram")

    with pytest.raises(SettingsError, match=r"speculation\.mode in the file"):
        trtllm_settings(WorkerSettings.from_environment())


def test_without_a_file_there_is_no_engine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="--config"):
        trtllm_settings(WorkerSettings())


def test_a_bad_file_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock_core.logs.configure", lambda _: None)

    assert main(["--engine", "trtllm", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_a_start_that_hangs_ends_the_process_with_its_stacks() -> None:
    program = (
        "import signal\n"
        "from penstock_worker.trtllm import ends_process_after\n"
        "with ends_process_after(30):\n    pass\n"
        "with ends_process_after(0.05):\n    signal.pause()\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == -signal.SIGALRM
    assert 'File "<string>", line 6' in ended.stderr
