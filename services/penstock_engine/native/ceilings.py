"""What the machine could do at best, measured here and now: reading weights, multiplying matrices.

Owns both measurements and the model's share in them, so that a benchmark can say which fraction of
the machine an engine uses. Knows no engine.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from penstock_engine.native.loading import draw_up
from penstock_engine.native.models.config import ModelConfig
from penstock_engine.native.settings import NativeSettings

_LEAST_BYTES = 8 << 20
_ROWS, _COLUMNS = 1024, 2048
_REPEATS = 12


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best of several measurements with the engine's own threads.

    Attributes:
        dtype: element type that steps are computed in, and that products were measured in.
        read_bytes_per_s: reading as many bytes as the weights take, from whichever cache holds them.
        matmul_flops_per_s: PyTorch's product of large matrices; a multiplication and an addition are 2.
        weights: numbers that each token is multiplied with, the output head included.
        weight_bytes: what they take in memory.
    """

    dtype: str
    read_bytes_per_s: float
    matmul_flops_per_s: float
    weights: int
    weight_bytes: int

    def read_fraction(self, steps_per_s: float) -> float:
        """Of the reading ceiling, at so many steps a second that read each weight once."""
        return self.weight_bytes * steps_per_s / self.read_bytes_per_s

    def matmul_fraction(self, tokens_per_s: float) -> float:
        """Of the multiplying ceiling, at so many tokens a second."""
        return 2 * self.weights * tokens_per_s / self.matmul_flops_per_s


def measure_ceilings(settings: NativeSettings) -> Ceilings:
    """Measure for an engine of these settings. Raises what ``draw_up`` raises."""
    blueprint = draw_up(settings)
    compute, weights = blueprint.compute, _weights(blueprint.config)
    num_bytes = weights * (1 if compute.int8 else compute.dtype.itemsize)
    before = torch.get_num_threads()
    torch.set_num_threads(compute.threads)
    try:
        with torch.inference_mode():
            return Ceilings(
                dtype=str(compute.dtype).removeprefix("torch."),
                read_bytes_per_s=_reading(max(num_bytes, _LEAST_BYTES), compute.device),
                matmul_flops_per_s=_multiplying(compute.dtype, compute.device),
                weights=weights,
                weight_bytes=num_bytes,
            )
    finally:
        torch.set_num_threads(before)


def _weights(config: ModelConfig) -> int:
    heads = config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    layer = config.hidden_size * (heads + 3 * config.intermediate_size)
    return config.num_layers * layer + config.vocab_size * config.hidden_size


def _reading(num_bytes: int, device: torch.device) -> float:
    numbers = torch.ones(num_bytes // 4, device=device)
    return numbers.nbytes / _fastest(numbers.sum, device)


def _multiplying(dtype: torch.dtype, device: torch.device) -> float:
    left = torch.ones(_ROWS, _COLUMNS, dtype=dtype, device=device)
    right = torch.ones(_COLUMNS, _COLUMNS, dtype=dtype, device=device)
    return 2 * _ROWS * _COLUMNS * _COLUMNS / _fastest(lambda: left @ right, device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several runs, the first excepted."""
    best = float("inf")
    for repeat in range(_REPEATS):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat:
            best = min(best, time.perf_counter() - began)
    return best
