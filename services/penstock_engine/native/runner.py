"""Runs one step plan on the model: copies, forward pass, draws.

Owns the order of these and nothing that outlives a step. Knows no time but its own duration, and not
whether PyTorch or the fused kernel computes.
"""

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from penstock_engine.native.batching import BatchShape, build_batch
from penstock_engine.native.kv_tensors import KvTensors
from penstock_engine.native.models.decoder import Decoder
from penstock_engine.native.plan import Chunk, StepPlan, StepResult
from penstock_engine.native.request import Drawn
from penstock_engine.native.sampling import Sampler


class PlanDecoder(Protocol):
    """A loaded model over its KV pages."""

    @property
    def weight_bytes(self) -> int:
        """Memory its matrices take."""
        ...

    def logits(self, plan: StepPlan) -> Tensor:
        """Compute the chunks; float32 logits ``(wanted positions, vocab)`` in plan order."""
        ...


class EagerDecoder:
    """PyTorch's operators, on any device."""

    def __init__(self, decoder: Decoder, shape: BatchShape, weight_bytes: int) -> None:
        self._decoder = decoder
        self._shape = shape
        self._weight_bytes = weight_bytes

    @property
    def weight_bytes(self) -> int:
        """See ``PlanDecoder.weight_bytes``."""
        return self._weight_bytes

    def logits(self, plan: StepPlan) -> Tensor:
        """See ``PlanDecoder.logits``."""
        return self._decoder.forward(build_batch(plan, self._shape))


class Runner:
    """A loaded model with its KV tensors."""

    def __init__(self, decoder: PlanDecoder, kv: KvTensors) -> None:
        self._decoder = decoder
        self._kv = kv
        self._sampler = Sampler()

    def run(self, plan: StepPlan) -> StepResult:
        """Compute a step and draw its tokens."""
        began = time.perf_counter()
        drawn: list[Drawn] = []
        with torch.inference_mode():
            logits = self.logits(plan)
            samples = [sample for chunk in plan.chunks for sample in chunk.draws]
            if samples:
                drawn = self._sampler.draw(_rows_to_draw(logits, plan.chunks), samples)
        return StepResult(drawn, time.perf_counter() - began)

    def logits(self, plan: StepPlan) -> Tensor:
        """Copy pages, compute the chunks, and return ``(wanted positions, vocab)`` in plan order."""
        self._kv.copy(plan.copies)
        return self._decoder.logits(plan)


def _rows_to_draw(logits: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """The last row of each chunk that draws, once for each sample that draws from it."""
    rows, last = [], -1
    for chunk in chunks:
        last += chunk.num_logits
        rows += [last] * len(chunk.draws)
    if len(rows) == logits.shape[0]:
        return logits
    return logits[torch.tensor(rows, device=logits.device)]
