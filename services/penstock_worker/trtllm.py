"""A worker's TensorRT-LLM engine: its settings put together, its model loaded, its end made sure.

Owns what the process must see to around the package: everything is checked before it is imported,
a start that hangs ends the process, and so does an exit that hangs. Nothing here may be run in a
thread, behind an event loop or before a fork.
"""

import atexit
import faulthandler
import logging
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from penstock_core.settings import SettingsError
from penstock_core.telemetry.tracing import outgoing
from penstock_engine.api import Engine
from penstock_engine.trtllm.building import build_engine, read_checkpoint
from penstock_engine.trtllm.settings import TrtLlmSettings, parse_settings
from penstock_text.chat import ChatTemplate
from penstock_text.source import resolve_model
from penstock_text.tokenizer import Tokenizer
from penstock_worker.settings import WorkerSettings
from penstock_worker.worker import Text

logger = logging.getLogger(__name__)

_EXIT_S = 120
_SHARED = {
    "model": "model",
    "dtype": "dtype",
    "max_batch": "max_batch_size",
    "max_batched_tokens": "max_num_tokens",
    "max_waiting": "max_waiting",
    "max_context_tokens": "max_seq_len",
}
_NATIVE_ONLY = {
    "device": "CUDA_VISIBLE_DEVICES and parallel in the file",
    "threads": "nothing in its place: it computes on GPUs",
    "kernel": "nothing in its place: it has its own",
    "quantization": "a quantized checkpoint, and kv_cache.dtype in the file",
    "kv_memory_mib": "kv_cache.free_gpu_memory_fraction or kv_cache.max_tokens in the file",
    "max_embed_tokens": "a native worker: this engine computes no embeddings",
    "speculation": "speculation.mode in the file",
    "draft_model": "speculation.draft_model in the file",
    "max_draft_tokens": "speculation.max_draft_tokens in the file",
    "adapters": "lora.adapters in the file",
    "max_adapters": "lora.max_on_gpu and lora.max_on_host in the file",
    "max_adapter_rank": "lora.max_rank in the file",
}
"""Variables that would be without effect here, and what to use instead."""


def trtllm_settings(settings: WorkerSettings) -> TrtLlmSettings:
    """The file's settings, under ``PENSTOCK_WORKER_TRTLLM``, under the process's other variables.

    Raises:
        SettingsError: there is no file, something in it is no good, or a variable is the native engine's.
    """
    if not settings.config:
        raise SettingsError("the engine trtllm needs a file: --config or PENSTOCK_WORKER_CONFIG")
    given = settings.model_fields_set
    if wrong := [name for name in _NATIVE_ONLY if name in given]:
        raise SettingsError(
            "; ".join(
                f"PENSTOCK_WORKER_{name.upper()} is the native engine's: use {_NATIVE_ONLY[name]}"
                for name in wrong
            )
        )
    overrides = {ours: getattr(settings, name) for name, ours in _SHARED.items() if name in given}
    if overrides.get("max_seq_len") == 0:
        del overrides["max_seq_len"]  # our word for "the model's"
    own = parse_settings(settings.trtllm, "PENSTOCK_WORKER_TRTLLM") if settings.trtllm else {}
    return TrtLlmSettings.load(Path(settings.config), {**own, **overrides})


def load_trtllm(settings: WorkerSettings) -> tuple[Engine, Text]:
    """Check everything, then load the model: minutes, and all GPUs it was given.

    Raises:
        SettingsError: the settings are no good, or not for this checkpoint.
        PenstockError: the checkpoint, the package or the model cannot be loaded.
    """
    chosen = trtllm_settings(settings)
    path = resolve_model(chosen.model, weights=True)
    checkpoint = read_checkpoint(chosen, path)
    text = Text(Tokenizer.load(path), ChatTemplate.load(path), chosen.model)
    logger.info("the model must be loaded within %g s", chosen.startup_timeout_s)
    with ends_process_after(chosen.startup_timeout_s):
        engine = build_engine(chosen, checkpoint, trace_headers)
    # Runs before the package's own exit handler, which blocks where its workers are dead.
    atexit.register(signal.alarm, _EXIT_S)
    return engine, text


def trace_headers() -> Mapping[str, str]:
    """The current trace context as headers."""
    return dict(outgoing())


@contextmanager
def ends_process_after(seconds: float) -> Iterator[None]:
    """Within the context, end the process when the time is over: with stacks, and a failure's status.

    A hang in MPI or CUDA hears no exception, so the kernel's timer does it; it needs no thread.
    """
    faulthandler.register(signal.SIGALRM, file=sys.stderr, all_threads=True, chain=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
