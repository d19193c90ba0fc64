"""Where a model's files are: the demo model, a directory, or the Hugging Face hub.

Owns the meaning of a model setting (``demo``, ``demo-draft``, a path, ``org/name``). Blocks on disk and network:
call it before the event loop runs.
"""

import re
from pathlib import Path

import penstock_models
from penstock_core.errors import NotFound

DEMO_NAME = "demo"
DEMO_DRAFT_NAME = "demo-draft"
_DEMO_SERVED_NAME = "penstock-demo"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_TEXT_PATTERNS = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
]
# Safetensors only: pickled weights run code when they are loaded.
_WEIGHT_PATTERNS = [*_TEXT_PATTERNS, "*.safetensors", "*.safetensors.index.json"]


def resolve_model(model: str, *, weights: bool) -> Path:
    """The directory with a model's files, downloaded first if it is a hub id.

    Args:
        model: ``demo``, ``demo-draft``, a directory or a hub id.
        weights: whether weights are needed, or only what turns text into tokens.

    Raises:
        NotFound: there is no such directory, and no such model on the hub (or no way to the hub).
    """
    if model == DEMO_NAME:
        return penstock_models.DEMO
    if model == DEMO_DRAFT_NAME:
        return penstock_models.DEMO_DRAFT
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path
    if not _HUB_ID.fullmatch(model):
        raise NotFound(f"there is no model directory {model}")
    return _download(model, _WEIGHT_PATTERNS if weights else _TEXT_PATTERNS)


def own_draft(model: str) -> str:
    """The draft model that comes with a model; empty if none does."""
    comes = model == DEMO_NAME and penstock_models.DEMO_DRAFT.is_dir()
    return DEMO_DRAFT_NAME if comes else ""


def served_name(model: str) -> str:
    """The name a model is asked for by, unless the operator chose one."""
    if model == DEMO_NAME:
        return _DEMO_SERVED_NAME
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def _download(hub_id: str, patterns: list[str]) -> Path:
    # Imported here: it is slow to import, and a local model never needs it.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    # A hub that cannot be reached shows as OSError or as an error of the HTTP library beneath.
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:
        raise NotFound(
            f"{hub_id} is no directory here and could not be had from the Hugging Face hub "
            f"({type(error).__name__}: {error})"
        ) from error
