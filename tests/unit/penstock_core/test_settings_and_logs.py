"""Settings are strict; log lines carry their request."""

import json
import logging
from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from penstock_core.ids import is_safe_id, new_id
from penstock_core.settings import ProcessSettings, SettingsError
from penstock_core.telemetry import logs


class Example(ProcessSettings):
    model_config = SettingsConfigDict(env_prefix="PENSTOCK_EXAMPLE_", frozen=True)

    listen: str = Field("127.0.0.1:1", description="Where it listens.")
    grace_s: float = Field(30.0, description="Seconds to drain.", gt=0)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_EXAMPLE_GRACE_S", "2.5")

    assert Example.from_environment() == Example(grace_s=2.5)


def test_an_unknown_variable_is_an_error_that_lists_the_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PENSTOCK_EXAMPLE_GRACE", "2")

    with pytest.raises(SettingsError, match=r"PENSTOCK_EXAMPLE_GRACE;.*PENSTOCK_EXAMPLE_GRACE_S"):
        Example.from_environment()


def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_EXAMPLE_GRACE_S", "soon")

    with pytest.raises(SettingsError, match="PENSTOCK_EXAMPLE_GRACE_S"):
        Example.from_environment()


def test_a_secret_comes_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "penstock_example_listen").write_text("h:2\n")
    monkeypatch.setenv("PENSTOCK_SECRETS_DIR", str(tmp_path))

    assert Example.from_environment().listen == "h:2"

    monkeypatch.setenv("PENSTOCK_EXAMPLE_LISTEN", "h:3")
    assert Example.from_environment().listen == "h:3"


def test_a_folder_of_secrets_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_SECRETS_DIR", str(tmp_path / "none"))

    with pytest.raises(SettingsError, match="PENSTOCK_SECRETS_DIR"):
        Example.from_environment()


def test_help_shows_every_setting_with_its_default() -> None:
    text = Example.describe()

    assert "PENSTOCK_EXAMPLE_LISTEN" in text
    assert "30.0" in text


def test_a_log_line_is_json_with_its_request_and_fields() -> None:
    token = logs.request_id.set("req_1")
    record = logging.getLogger("x").makeRecord(
        "x", logging.INFO, "f", 1, "worker %s is live", ("w1",), None, extra={"seq": 4}
    )

    line = json.loads(logs.JsonFormatter("router").format(record))
    logs.request_id.reset(token)

    assert line["message"] == "worker w1 is live"
    assert (line["service"], line["request_id"], line["seq"]) == ("router", "req_1", 4)


def test_ids_are_unique_and_safe() -> None:
    ids = {new_id("req") for _ in range(100)}

    assert len(ids) == 100
    assert all(is_safe_id(i) for i in ids)
    assert not is_safe_id("../etc/passwd")
    assert not is_safe_id("a" * 129)
