"""Which tokens a step may draw for its constrained rows.

Owns what is known of one step (``RowMasks``, ``FollowedRows``, ``StepMasks``), and how they are found without the fused
kernel: in a thread beside the forward pass if there are many, since they depend on the tokens so far
and on drafts, not on logits. Beside the kernel ``fused.following`` finds them sooner. A row where only
the end is possible is not drawn for: it ends its sample. Knows neither grammars (``grammars`` does)
nor how draws are made.
"""

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock_engine.api import FinishReason
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Sample
from penstock_engine.native.structured.grammars import GrammarMatcher

M = TypeVar("M")

_WORD_BITS = 32
_ALL = 0xFFFFFFFF
_FEW_ROWS = 4
"""Rows whose masks are computed at once: handing them to the thread and back takes longer."""


@dataclass(frozen=True, slots=True)
class RowMasks:
    """Masks of some rows of a step's draws.

    Attributes:
        rows: which rows, ascending.
        allowed: ``(rows, words)``; bit ``t % 32`` of word ``t // 32`` tells whether token ``t`` may be
            drawn. Of a row in ``ends`` nothing is. There may be rows to spare.
        ends: why the sample of a row ends instead of drawing.
        address: of the first word.
    """

    rows: Sequence[int]
    allowed: NDArray[np.uint32]
    ends: dict[int, FinishReason]
    address: int


@dataclass(slots=True)
class FollowedRows:
    """Rows whose masks are where the fused kernel needs them, so that nobody else has to see them.

    Attributes:
        followers: address of each row's follower, 0 where there is none.
        drafts: behind how many drafts a row is, -1 where its sample has none; None if no sample has any.
        collect: copies of the masks.
        ends: why the sample of a row ends instead of drawing, once it was drawn for.
    """

    followers: "array[int]"
    drafts: "array[int] | None"
    collect: Callable[["FollowedRows"], RowMasks]
    ends: dict[int, FinishReason] = field(default_factory=dict)


StepRows = RowMasks | FollowedRows


class StepMasks(Protocol):
    """Whoever knows the masks of a step's draws. Closed by its owner."""

    def begin(self, plan: StepPlan) -> Callable[[], StepRows] | None:
        """Start on the masks of a step's draws; None if no sample of it is constrained.

        What it returns waits for them; call it before any of the samples moves on.
        """
        ...

    def close(self) -> None:
        """End what was begun for it."""
        ...


@dataclass(frozen=True, slots=True)
class Run(Generic[M]):
    """Rows of one sample: behind its tokens, and behind its first, second, ... draft."""

    sample: Sample
    matcher: M
    row: int
    drafts: tuple[int, ...]


class Masks:
    """Computes masks in a thread of its own. Closed by its owner."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._words = vocab_size // _WORD_BITS + 1  # one bit more than tokens: "may end here"
        self._thread = ThreadPoolExecutor(1, "engine-masks")

    def begin(self, plan: StepPlan) -> Callable[[], RowMasks] | None:
        """See ``StepMasks.begin``."""
        runs = runs_of(plan.chunks, GrammarMatcher)
        if not runs:
            return None
        if sum(1 + len(run.drafts) for run in runs) <= _FEW_ROWS:
            return partial(self._compute, runs)
        return self._thread.submit(self._compute, runs).result

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _compute(self, runs: Sequence[Run[GrammarMatcher]]) -> RowMasks:
        rows = [run.row + i for run in runs for i in range(1 + len(run.drafts))]
        allowed, ends = self._fill(runs, len(rows)), {}
        word, bit = divmod(self._vocab_size, _WORD_BITS)
        may_end = (allowed[:, word] >> bit & 1).tolist()
        allowed[:, word] &= (1 << bit) - 1
        at = 0
        for run in runs:
            # One that gave up (a grammar can grow too complex) says that all may end.
            fine = not run.matcher.raw.is_error()
            for depth in range(1 + len(run.drafts)):
                end = _settle_ends(run.sample, depth, allowed[at], fine and bool(may_end[at]))
                if end is not None:
                    ends[rows[at]] = end
                at += 1
        return RowMasks(rows, allowed, ends, allowed.ctypes.data)

    def _fill(self, runs: Sequence[Run[GrammarMatcher]], num_rows: int) -> NDArray[np.uint32]:
        """One bit for each row and token, and one for the end behind them."""
        packed = np.zeros((num_rows, self._words), dtype=np.uint32)
        place, size = packed.ctypes.data, packed.strides[0]
        for run in runs:
            _fill_run(run, place, size)
            place += size * (1 + len(run.drafts))
        return packed


def _fill_run(run: Run[GrammarMatcher], place: int, size: int) -> None:
    """Masks of ``size`` bytes from ``place`` on; rows that cannot be reached stay empty."""
    matcher, followed = run.matcher.raw, 0
    matcher.unsafe_compute_mask_ptr(place, size)
    for draft in run.drafts:
        if matcher.try_consume_tokens([draft]) != 1:
            break
        followed += 1
        if matcher.is_stopped():
            break
        matcher.unsafe_compute_mask_ptr(place + followed * size, size)
    if followed:
        matcher.rollback(followed)


def runs_of(chunks: Sequence[Chunk], kind: type[M]) -> list[Run[M]]:
    """The rows with matchers of a kind, numbered as the step's draws are."""
    runs: list[Run[M]] = []
    row = 0
    for chunk in chunks:
        for sample in chunk.draws:
            matcher = sample.matcher
            if isinstance(matcher, kind):
                runs.append(Run(sample, matcher, row, chunk.drafts))
            row += 1
        row += len(chunk.drafts)
    return runs


def _settle_ends(
    sample: Sample, depth: int, allowed: NDArray[np.uint32], may_end: bool
) -> FinishReason | None:
    """Let stop tokens through where the grammar may end, in place; why to end if nothing is left.

    A row behind a draft that completes the grammar is empty as well; nobody looks at it.
    """
    spec = sample.request.spec
    stops = may_end and sample.num_output + depth >= spec.min_tokens
    for token in spec.stop_token_ids:
        word, bit = divmod(token, _WORD_BITS)
        kept = int(allowed[word]) & ~(1 << bit)
        allowed[word] = kept | stops << bit
    if allowed.any():
        return None
    allowed[:] = _ALL
    return FinishReason.STOP if may_end else FinishReason.CONSTRAINT
