"""The worker's command line and variables for the engine trtllm."""

import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock_core.settings import SettingsError, TlsSettings
from penstock_worker import __main__
from penstock_worker.__main__ import main
from penstock_worker.arguments import UsageError, parse_arguments
from penstock_worker.settings import WorkerSettings
from penstock_worker.trtllm import _NATIVE_ONLY, _SHARED, trtllm_settings


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


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("SPECULATION", "ngram", r"speculation\.mode in the file"),
        ("QUANTIZATION", "int8", "a quantized checkpoint"),
        ("ADAPTERS", "/adapters", r"lora\.adapters in the file"),
        ("MAX_EMBED_TOKENS", "0", "a native worker"),
    ],
)
def test_the_native_engines_variables_are_refused(
    monkeypatch: pytest.MonkeyPatch, config: Path, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv("PENSTOCK_WORKER_CONFIG", str(config))
    monkeypatch.setenv(f"PENSTOCK_WORKER_{name}", value)

    with pytest.raises(SettingsError, match=told):
        trtllm_settings(WorkerSettings.from_environment())


def test_no_variable_is_without_effect_in_silence() -> None:
    """A new setting of workers is this engine's too, or refused, or of the process around it."""
    of_the_process = {
        "listen", "advertise", "id", "engine", "config", "trtllm", "served_names", "registry_url",
        "lease_secret", "metrics_listen", "response_cache_mib", "response_cache_ttl_s", "grace_s",
        "zone", "pool", "prices", "currency", "cost_class", "metered_tenants",
    }  # fmt: skip

    of_the_process |= set(TlsSettings.model_fields)
    assert set(WorkerSettings.model_fields) == {*_SHARED, *_NATIVE_ONLY, *of_the_process}


def test_a_variable_overrides_any_setting_of_the_file(
    monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    monkeypatch.setenv("PENSTOCK_WORKER_CONFIG", str(config))
    monkeypatch.setenv("PENSTOCK_WORKER_TRTLLM", "{kv_cache: {dtype: fp8}, max_batch_size: 5}")
    monkeypatch.setenv("PENSTOCK_WORKER_MAX_BATCH", "3")

    chosen = trtllm_settings(WorkerSettings.from_environment())

    assert (chosen.kv_cache.dtype, chosen.max_batch_size, chosen.max_seq_len) == ("fp8", 3, 100)


@pytest.mark.parametrize(
    ("value", "told"),
    [("{a", "PENSTOCK_WORKER_TRTLLM"), ("fp8", "a mapping"), ("{nope: 1}", "nope")],
)
def test_such_a_variable_is_checked_like_the_file(
    monkeypatch: pytest.MonkeyPatch, config: Path, value: str, told: str
) -> None:
    monkeypatch.setenv("PENSTOCK_WORKER_CONFIG", str(config))
    monkeypatch.setenv("PENSTOCK_WORKER_TRTLLM", value)

    with pytest.raises(SettingsError, match=told):
        trtllm_settings(WorkerSettings.from_environment())


def test_a_process_that_imports_the_worker_again_starts_nothing() -> None:
    """As MPI's spawned processes do with the main module."""
    done = runpy.run_path(str(__main__.__file__), run_name="__worker__")

    assert callable(done["main"])


def test_without_a_file_there_is_no_engine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="--config"):
        trtllm_settings(WorkerSettings())


def test_a_bad_file_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock_core.telemetry.logs.configure", lambda _: None)

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
