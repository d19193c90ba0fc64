"""The TensorRT-LLM engine on a stand-in for its package.

Owns putting the stand-in into the package's place, and taking it out again: where the real one is
installed, its own tests must find that.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from penstock_engine.trtllm.building import read_checkpoint
from penstock_engine.trtllm.engine import Headers, TrtLlmEngine
from penstock_engine.trtllm.llm_args import llm_arguments
from penstock_engine.trtllm.package import Llm, load_package
from penstock_engine.trtllm.settings import TrtLlmSettings
from penstock_engine.trtllm.submitter import Loaded

_PACKAGE = "tensorrt_llm"
_made: dict[Path, dict[str, ModuleType]] = {}  # importing it builds fifty classes: once is enough


@contextmanager
def installed_double(folder: Path) -> Iterator[ModuleType]:
    """``import tensorrt_llm`` gives the one in ``folder`` until the context ends."""
    before = _take_out()
    sys.modules.update(_made.get(folder, {}))
    sys.path.insert(0, str(folder))
    try:
        for name in ("", ".llmapi", ".lora_helper", ".scheduling_params"):
            importlib.import_module(_PACKAGE + name)
        yield sys.modules[_PACKAGE]
    finally:
        sys.path.remove(str(folder))
        _made[folder] = _take_out()
        sys.modules.update(before)


def build_on_double(
    model: Path, settings: Mapping[str, object], headers: Headers | None = None
) -> TrtLlmEngine:
    """An engine on the stand-in that is installed. ``settings`` are a file's content."""
    return double_and_engine(model, settings, headers)[1]


def double_and_engine(
    model: Path, settings: Mapping[str, object], headers: Headers | None = None
) -> tuple[Llm, TrtLlmEngine]:
    """The stand-in's LLM, to steer it by, and an engine on it."""
    chosen = TrtLlmSettings.model_validate({"model": str(model), **settings})
    checkpoint = read_checkpoint(chosen, model)
    package = load_package()
    llm = package.llm(llm_arguments(chosen, checkpoint))
    loaded = Loaded(package, llm)
    given = headers if headers is not None else dict
    return llm, TrtLlmEngine(loaded, chosen, checkpoint, given)


def _take_out() -> dict[str, ModuleType]:
    names = [n for n in sys.modules if n == _PACKAGE or n.startswith(f"{_PACKAGE}.")]
    return {name: sys.modules.pop(name) for name in names}
