"""Runs one step plan on the model: copies, forward pass, draws, the check of drafts.

Owns the order of these and nothing that outlives a step. Knows no time but its own duration, and not
whether PyTorch or the fused kernel computes.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from penstock_engine.native.execution.batching import BatchShape, build_batch
from penstock_engine.native.execution.sampling import Drawer, Rows, Sampler
from penstock_engine.native.lora.eager import EagerAdapter
from penstock_engine.native.models.decoder import Decoder
from penstock_engine.native.models.kv_tensors import KvTensors
from penstock_engine.native.scheduling.plan import Chunk, StepPlan, StepResult
from penstock_engine.native.scheduling.request import Ahead, Drawn
from penstock_engine.native.structured.masks import StepMasks
from penstock_engine.speculative.accept import num_accepted

_NOTHING = -1
"""Drawn where a constraint leaves nothing; equals no draft."""


class PlanDecoder(Protocol):
    """A loaded model over its KV pages."""

    @property
    def weight_bytes(self) -> int:
        """Memory its matrices take."""
        ...

    def logits(self, plan: StepPlan) -> Tensor:
        """Compute the chunks; float32 logits ``(wanted positions, vocab)`` in plan order."""
        ...

    def hidden(self, plan: StepPlan) -> Tensor:
        """The same, without the head: float32 ``(wanted positions, hidden size)``, normed."""
        ...


class EagerDecoder:
    """PyTorch's operators, on any device."""

    def __init__(
        self,
        decoder: Decoder,
        shape: BatchShape,
        weight_bytes: int,
        adapters: Mapping[str, EagerAdapter],
    ) -> None:
        """``adapters`` are those in memory, by name: others change them between steps."""
        self._decoder = decoder
        self._shape = shape
        self._weight_bytes = weight_bytes
        self._adapters = adapters

    @property
    def weight_bytes(self) -> int:
        """See ``PlanDecoder.weight_bytes``."""
        return self._weight_bytes

    def logits(self, plan: StepPlan) -> Tensor:
        """See ``PlanDecoder.logits``."""
        return self._decoder.forward(build_batch(plan, self._shape, self._adapters))

    def hidden(self, plan: StepPlan) -> Tensor:
        """See ``PlanDecoder.hidden``."""
        return self._decoder.hidden(build_batch(plan, self._shape)).float()


class Runner:
    """A loaded model with its KV tensors."""

    def __init__(
        self,
        decoder: PlanDecoder,
        kv: KvTensors,
        masks: StepMasks | None = None,
        rows: Rows | None = None,
    ) -> None:
        self._decoder = decoder
        self._kv = kv
        self._masks = masks
        self._sampler = Sampler(rows)

    def run(self, plan: StepPlan) -> StepResult:
        """Compute a step and draw its tokens."""
        began = time.perf_counter()
        drawn: list[Drawn] = []
        masking = self._masks.begin(plan) if self._masks is not None else None
        with torch.inference_mode():
            logits = self.logits(plan)
            drawers = _drawers(plan)
            if drawers:
                masks = masking() if masking is not None else None
                rows = self._sampler.draw(_rows_to_draw(logits, plan, len(drawers)), drawers, masks)
                drawn = _settle(rows, plan.chunks) if plan.has_drafts else rows
        return StepResult(drawn, time.perf_counter() - began)

    def hidden(self, plan: StepPlan) -> Tensor:
        """Compute the chunks, and return float32 ``(wanted positions, hidden size)`` in plan order."""
        with torch.inference_mode():
            return self._decoder.hidden(plan)

    def logits(self, plan: StepPlan) -> Tensor:
        """Copy pages, compute the chunks, and return ``(wanted positions, vocab)`` in plan order."""
        self._kv.copy(plan.copies)
        return self._decoder.logits(plan)


def _drawers(plan: StepPlan) -> Sequence[Drawer]:
    """Who draws: for a chunk with drafts, its sequence behind the first none, one, ... all of them."""
    if not plan.has_drafts:
        return [sample for chunk in plan.chunks for sample in chunk.draws]
    drawers: list[Drawer] = []
    for chunk in plan.chunks:
        drawers += chunk.draws
        drafts = range(1, len(chunk.drafts) + 1)
        drawers += [Ahead(chunk.sample, chunk.drafts[:count]) for count in drafts]
    return drawers


def _rows_to_draw(logits: Tensor, plan: StepPlan, num_drawers: int) -> Tensor:
    """The last row of each chunk that draws, once for each that draws from it; all rows of drafts."""
    if num_drawers == logits.shape[0] and not plan.has_drafts:
        return logits  # without drafts a chunk has one row at most, and somebody draws from it
    rows: list[int] = []
    end = 0
    for chunk in plan.chunks:
        end += chunk.num_logits
        if chunk.drafts:
            rows += range(end - chunk.num_logits, end)
        else:
            rows += [end - 1] * len(chunk.draws)
    if len(rows) == logits.shape[0]:
        return logits
    return logits[torch.tensor(rows, device=logits.device)]


def _settle(rows: Sequence[Drawn], chunks: Sequence[Chunk]) -> list[Drawn]:
    """One draw for each of the plan's: rows of a chunk with drafts count as far as those stand."""
    drawn: list[Drawn] = []
    at = 0
    for chunk in chunks:
        size = 1 + len(chunk.drafts) if chunk.drafts else len(chunk.draws)
        mine, at = rows[at : at + size], at + size
        drawn += [_verified(chunk.drafts, mine)] if chunk.drafts else mine
    return drawn


def _verified(drafts: Sequence[int], rows: Sequence[Drawn]) -> Drawn:
    draws = [row.token_ids[0] if row.token_ids else _NOTHING for row in rows]
    kept = rows[: num_accepted(drafts, draws) + 1]
    tokens = tuple(token for row in kept for token in row.token_ids)
    logprobs = tuple(logprob for row in kept for logprob in row.logprobs)
    return Drawn(tokens, logprobs, kept[-1].finish)
