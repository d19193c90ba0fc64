"""Tokens from rows of logits, and what is forbidden there, by the kernel.

Owns the crossing into it. Torch's own ways cost more than a small model's whole step: they pass over
the vocabulary half a dozen times and wake their threads for each pass.
"""

from array import array
from collections.abc import Sequence

from torch import Tensor

from penstock_engine.api import FinishReason
from penstock_engine.native.fused.library import Library
from penstock_engine.native.structured.masks import FollowedRows, RowMasks, StepRows

ENDED = {1: FinishReason.STOP, 2: FinishReason.CONSTRAINT}
"""By what the kernel calls complete and broken; 0 is open."""


class KernelRows:
    """Works on rows of logits; see ``sampling.Rows``."""

    def __init__(self, library: Library) -> None:
        self._draw = library.draw
        self._draw_followed = library.draw_followed
        self._forbid = library.forbid

    def forbid(self, logits: Tensor, masks: StepRows) -> None:
        """See ``Rows.forbid``."""
        assert logits.is_contiguous(), "rows are found by their distance"
        if isinstance(masks, FollowedRows):
            masks = masks.collect(masks)
        where, words = array("q", masks.rows), masks.allowed.shape[1]
        place, count = where.buffer_info()
        self._forbid(logits.data_ptr(), logits.shape[1], place, count, masks.address, words)

    def pick(
        self,
        logits: Tensor,
        temperatures: Sequence[float],
        points: Sequence[float],
        masks: StepRows | None = None,
    ) -> list[int]:
        """The best token where the temperature is 0, else the one its point in [0, 1) falls to.

        ``logits`` is ``(rows, vocab)`` in float32. What ``masks`` forbids is not even read.
        """
        logits = logits.contiguous()
        rows, vocabulary = logits.shape
        scales, places = array("f", temperatures), array("d", points)
        out = array("i", bytes(4 * rows))
        told = (logits.data_ptr(), rows, vocabulary, _address(scales), _address(places))
        if masks is None:
            self._draw(*told, None, None, 0, _address(out))
        elif isinstance(masks, FollowedRows):
            ends = array("b", bytes(rows))
            drafts = None if masks.drafts is None else _address(masks.drafts)
            found = _address(masks.followers), drafts, _address(out), _address(ends)
            if self._draw_followed(*told, *found):
                masks.ends |= {row: ENDED[code] for row, code in enumerate(ends) if code}
        else:
            where = _where(masks, rows)
            masked = (_address(where), masks.address, masks.allowed.shape[1])
            self._draw(*told, *masked, _address(out))
        return out.tolist()


def _where(masks: RowMasks, rows: int) -> "array[int]":
    """The place of each row's mask, -1 where it has none."""
    if len(masks.rows) == rows:
        return array("i", range(rows))
    where = array("i", [-1]) * rows
    for place, row in enumerate(masks.rows):
        where[row] = place
    return where


def _address(numbers: "array[int] | array[float]") -> int:
    return numbers.buffer_info()[0]
