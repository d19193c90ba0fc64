"""Tokens from rows of logits, and what is forbidden there, by the kernel.

Owns the crossing into it. Torch's own ways cost more than a small model's whole step: they pass over
the vocabulary half a dozen times and wake their threads for each pass.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from penstock_engine.native.fused.library import Library


class KernelRows:
    """Works on rows of logits; see ``sampling.Rows``."""

    def __init__(self, library: Library) -> None:
        self._draw = library.draw
        self._forbid = library.forbid

    def forbid(self, logits: Tensor, rows: Sequence[int], allowed: NDArray[np.uint32]) -> None:
        """Set what is not allowed to minus infinity, in place; ``allowed`` is ``(rows, words)``, packed."""
        assert logits.is_contiguous(), "rows are found by their distance"
        where = np.array(rows, dtype=np.int64)
        self._forbid(
            logits.data_ptr(), logits.shape[1], where.ctypes.data, len(rows),
            allowed.ctypes.data, allowed.shape[1],
        )  # fmt: skip

    def pick(
        self, logits: Tensor, temperatures: Sequence[float], points: Sequence[float]
    ) -> list[int]:
        """The best token where the temperature is 0, else the one its point in [0, 1) falls to.

        ``logits`` is ``(rows, vocab)`` in float32.
        """
        logits = logits.contiguous()
        rows, vocabulary = logits.shape
        scales = np.array(temperatures, dtype=np.float32)
        places = np.array(points, dtype=np.float64)
        out = np.empty(rows, dtype=np.int32)
        addresses = (scales.ctypes.data, places.ctypes.data, out.ctypes.data)
        self._draw(logits.data_ptr(), rows, vocabulary, *addresses)
        tokens: list[int] = out.tolist()
        return tokens
