"""Decode steps as captured CUDA graphs: one launch instead of some hundred.

Owns the static tensors that a graph reads and the sizes it is captured for. A step that is no plain
decode, or larger than any size, runs as it would without graphs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penstock_engine.native.execution.batching import BatchShape
from penstock_engine.native.execution.runner import EagerDecoder
from penstock_engine.native.models.attention import AttentionGroup
from penstock_engine.native.models.decoder import Batch, Decoder
from penstock_engine.native.models.paged import PagedRows
from penstock_engine.native.scheduling.plan import Chunk, StepPlan

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Records a computation on static tensors: how to repeat it, and where its result will lie."""


@dataclass(frozen=True, slots=True)
class GraphRoom:
    """What static tensors are made for.

    Attributes:
        max_batch: rows of the largest graph.
        max_pages: of one sequence.
        spare_page: a page that is nobody's, which rows without a sequence write to.
    """

    max_batch: int
    max_pages: int
    spare_page: int

    @property
    def sizes(self) -> list[int]:
        """Rows that graphs are captured for: powers of two, then steps of sixteen."""
        small = [size for size in (1, 2, 4, 8) if size < self.max_batch]
        return [*small, *range(16, self.max_batch, 16), self.max_batch]


class _Graph:
    """A captured step of so many rows."""

    def __init__(self, size: int, decoder: Decoder, shape: BatchShape, room: GraphRoom) -> None:
        self._room, self._block = room, shape.block_tokens
        self._rows = torch.zeros(4, size, dtype=torch.int64, device=shape.device)
        self._tables = torch.full(
            (size, room.max_pages), room.spare_page, dtype=torch.int64, device=shape.device
        )
        self._decoder = decoder
        where = PagedRows(self._tables, self._rows[3], 1)
        self._batch = Batch(
            tokens=self._rows[0],
            positions=self._rows[1],
            slots=self._rows[2],
            groups=(AttentionGroup(0, size, size, None, room.max_pages, None, where),),
            logit_rows=torch.arange(size, device=shape.device),
        )
        self._replay: Replay | None = None
        self._out: Tensor | None = None
        self._fill((), 0)

    def run(self, chunks: Sequence[Chunk], capture: Capture) -> Tensor:
        """Logits of decoding chunks, ``(chunks, vocab)``; valid until the next run."""
        self._fill(chunks, max(len(chunk.sample.pages) for chunk in chunks))
        if self._replay is None:
            self._replay, self._out = capture(lambda: self._decoder.forward(self._batch))
        self._replay()
        assert self._out is not None, "nothing was captured"
        return self._out[: len(chunks)]

    def _fill(self, chunks: Sequence[Chunk], width: int) -> None:
        """Tokens, positions, slots and lengths; rows to spare read and write the spare page."""
        rows = np.zeros(tuple(self._rows.shape), dtype=np.int64)
        rows[2], rows[3] = self._room.spare_page * self._block, 1
        tables = np.full((rows.shape[1], width), self._room.spare_page, dtype=np.int64)
        for index, chunk in enumerate(chunks):
            pages, at = chunk.sample.pages, chunk.start
            slot = pages[at // self._block] * self._block + at % self._block
            rows[:, index] = (chunk.tokens[0], at, slot, at + 1)
            tables[index, : len(pages)] = pages
        self._rows.copy_(torch.from_numpy(rows))
        self._tables[:, :width].copy_(torch.from_numpy(tables))


class GraphedDecoder:
    """Plain decode steps by graphs, all others by the eager decoder."""

    def __init__(self, eager: EagerDecoder, decoder: Decoder, shape: BatchShape, room: GraphRoom,
        capture: Capture,
    ) -> None:  # fmt: skip
        self._eager = eager
        self._decoder = decoder
        self._shape = shape
        self._room = room
        self._capture = capture
        self._graphs: dict[int, _Graph] = {}

    @property
    def weight_bytes(self) -> int:
        """See ``PlanDecoder.weight_bytes``."""
        return self._eager.weight_bytes

    def hidden(self, plan: StepPlan) -> Tensor:
        """See ``PlanDecoder.hidden``."""
        return self._eager.hidden(plan)

    def logits(self, plan: StepPlan) -> Tensor:
        """See ``PlanDecoder.logits``."""
        size = self._size_for(plan.chunks)
        if size is None:
            return self._eager.logits(plan)
        if size not in self._graphs:
            self._graphs[size] = _Graph(size, self._decoder, self._shape, self._room)
        return self._graphs[size].run(plan.chunks, self._capture)

    def _size_for(self, chunks: Sequence[Chunk]) -> int | None:
        fits = all(
            chunk.count == chunk.num_logits == 1
            and len(chunk.sample.pages) <= self._room.max_pages
            and not chunk.sample.request.spec.adapter
            for chunk in chunks
        )
        return next((s for s in self._room.sizes if s >= len(chunks)), None) if fits else None


def capture_graph(compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """A ``Capture`` by CUDA; computes a few times first, since kernels compile on their first call."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compute()
    return graph.replay, out
