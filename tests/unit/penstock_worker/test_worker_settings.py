"""The worker's command line and settings."""

import os

import pytest

from penstock_core.settings import SettingsError
from penstock_worker.__main__ import calm_threads, main
from penstock_worker.settings import WorkerSettings


def test_defaults_serve_the_demo_model_on_loopback() -> None:
    settings = WorkerSettings.from_environment()

    assert settings.model == "demo"
    assert settings.listen.startswith("127.0.0.1:")
    assert settings.names("penstock-demo") == ("penstock-demo",)


def test_served_names_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_WORKER_SERVED_NAMES", "a, b,")

    assert WorkerSettings.from_environment().names("own") == ("a", "b")


def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_WORKER_MAX_BACH", "3")

    with pytest.raises(SettingsError, match="PENSTOCK_WORKER_MAX_BACH"):
        WorkerSettings.from_environment()


def test_help_names_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0

    shown = capsys.readouterr().out
    assert all(f"PENSTOCK_WORKER_{name.upper()}" in shown for name in WorkerSettings.model_fields)


def test_arguments_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", "x"]) == 2
    assert "--help" in capsys.readouterr().err


def test_idle_threads_sleep_unless_the_operator_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")

    calm_threads(3)

    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_threads_are_counted_where_no_affinity_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)

    calm_threads(0)

    assert os.environ["OMP_NUM_THREADS"] == "5"
