"""Loads a model into TensorRT-LLM. Blocks for minutes: before any event loop, thread or fork.

The package spawns its workers through MPI, and each of them imports the main module again: whoever
calls this stands behind ``if __name__ == "__main__"``.
"""

import logging
from pathlib import Path

from penstock_core.errors import EngineFailed
from penstock_engine.trtllm import rules
from penstock_engine.trtllm.checkpoint import Checkpoint, check
from penstock_engine.trtllm.engine import Headers, TrtLlmEngine
from penstock_engine.trtllm.llm_args import llm_arguments
from penstock_engine.trtllm.package import load_package
from penstock_engine.trtllm.settings import TrtLlmSettings
from penstock_engine.trtllm.submitter import Loaded

logger = logging.getLogger(__name__)


def read_checkpoint(settings: TrtLlmSettings, path: Path) -> Checkpoint:
    """The checkpoint's facts, held against the settings; needs no package.

    Raises:
        SettingsError: the settings ask for what it cannot do.
        NotFound, InvalidRequest: the directory is no good.
    """
    checkpoint = Checkpoint.read(path)
    check(settings, checkpoint)
    return checkpoint


def build_engine(
    settings: TrtLlmSettings, checkpoint: Checkpoint, headers: Headers
) -> TrtLlmEngine:
    """Load the package and the model.

    Raises:
        NotSupported: the package is missing or of the wrong version.
        EngineFailed: it cannot load the model.
    """
    for doubt in rules.warnings(settings):
        logger.warning("%s", doubt)
    package = load_package()
    arguments = llm_arguments(settings, checkpoint)
    logger.info("TensorRT-LLM %s loads %s", package.version, checkpoint.path)
    try:
        llm = package.llm(arguments)
    except Exception as error:
        raise EngineFailed(f"TensorRT-LLM cannot load the model: {error}") from error
    return TrtLlmEngine(Loaded(package, llm), settings, checkpoint, headers)
