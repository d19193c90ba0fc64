"""What computes an engine's steps: device, element type, kernel, threads.

Owns the choices left to "auto" and the refusal of what cannot be had. Exactness comes first:
bfloat16 is chosen on a CPU only with the fused kernel, which gives a sequence the same tokens
alone as in any batch; PyTorch's own bfloat16 products do not.
"""

import logging
import os
from dataclasses import dataclass

import torch

from penstock_core.errors import InvalidRequest, NotSupported
from penstock_engine.native.fused.library import Library, open_library
from penstock_engine.native.models.config import ModelConfig
from penstock_engine.native.settings import NativeSettings

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FUSED_DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and how steps are computed; ``library`` is the fused kernel if it does."""

    device: torch.device
    dtype: torch.dtype
    library: Library | None
    int8: bool
    threads: int

    def __str__(self) -> str:
        weights = f"{'int8 ' if self.int8 else ''}{str(self.dtype).removeprefix('torch.')}"
        kernel = f"fused {self.library.instructions}" if self.library else "eager"
        return f"{self.device} ({kernel}, {weights})"


def choose(settings: NativeSettings, config: ModelConfig) -> Compute:
    """Decide all of it, compiling the kernel if it is wanted and was not compiled yet.

    Raises:
        InvalidRequest: a setting is no good.
        NotSupported: it asks for what is not there.
    """
    if settings.quantization not in {"none", "int8"}:
        message = f"quantization {settings.quantization!r} is unknown (none and int8 are known)"
        raise InvalidRequest(message, field="quantization")
    device = _device(settings.device)
    library = _library(settings, device)
    return Compute(
        device=device,
        dtype=_dtype(settings.dtype, config, exact=device.type == "cuda" or library is not None),
        library=library,
        int8=settings.quantization == "int8",
        threads=settings.threads or default_threads(),
    )


def default_threads() -> int:
    """All CPUs this process may use, less one for the event loop if there are more than two."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cpus - 1 if cpus > 2 else cpus


def _library(settings: NativeSettings, device: torch.device) -> Library | None:
    wanted = settings.kernel
    if wanted not in {"auto", "fused", "eager"}:
        message = f"kernel {wanted!r} is unknown (auto, fused and eager are known)"
        raise InvalidRequest(message, field="kernel")
    fits = device.type == "cpu" and settings.dtype in _FUSED_DTYPES
    if wanted == "fused" and not fits:
        raise NotSupported("the fused kernel computes in float32 or bfloat16 on a CPU only")
    if wanted == "eager" or not fits:
        return None
    try:
        return open_library()
    except NotSupported as error:
        if wanted == "fused":
            raise
        logger.warning("no fused kernel, PyTorch's own serve: %s", error.message)
        return None


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidRequest(f"device {name!r} is unknown to torch", field="device") from error
    if device.type not in {"cpu", "cuda"}:
        raise NotSupported(f"device {name!r} is not supported (cpu and cuda are)")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidRequest(f"device {name!r} was asked for and no GPU is there", field="device")
    return device


def _dtype(name: str, config: ModelConfig, *, exact: bool) -> torch.dtype:
    """The type asked for; by itself the checkpoint's, if batches are exact in it."""
    if name == "auto":
        name = config.dtype if exact else "float32"
    if name not in _DTYPES:
        raise NotSupported(f"dtype {name!r} is not supported ({', '.join(_DTYPES)} are)")
    return _DTYPES[name]
