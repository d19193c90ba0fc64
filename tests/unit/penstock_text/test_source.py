"""Where models come from."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from penstock_core.errors import NotFound
from penstock_models import DEMO
from penstock_text.source import resolve_model, served_name


def test_the_demo_model_is_at_hand() -> None:
    assert resolve_model("demo", weights=True) == DEMO
    assert served_name("demo") == "penstock-demo"


def test_a_directory_is_itself_and_named_after_itself(tmp_path: Path) -> None:
    model = tmp_path / "my-model"
    model.mkdir()

    assert resolve_model(str(model), weights=True) == model
    assert served_name(str(model)) == "my-model"


@pytest.mark.parametrize("model", ["/no/such/directory", "./missing", "a/b/c", ""])
def test_a_missing_directory_is_never_looked_for_on_the_hub(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))

    with pytest.raises(NotFound, match="no model directory"):
        resolve_model(model, weights=False)


@pytest.mark.parametrize(("weights", "wants_safetensors"), [(True, True), (False, False)])
def test_a_hub_id_fetches_only_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool, wants_safetensors: bool
) -> None:
    asked: dict[str, list[str]] = {}

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        asked[hub_id] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    assert resolve_model("org/model-1B", weights=weights) == tmp_path
    assert served_name("org/model-1B") == "org/model-1B"
    assert "tokenizer.json" in asked["org/model-1B"]
    assert ("*.safetensors" in asked["org/model-1B"]) == wants_safetensors
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["org/model-1B"])


def test_an_unreachable_hub_is_told_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection and nothing in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    with pytest.raises(NotFound, match=r"org/model.*no connection"):
        resolve_model("org/model", weights=True)
