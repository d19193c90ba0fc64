"""Runs one step plan on the model: copies, forward pass, draws.

Owns the order of these and nothing that outlives a step. Knows no time but its own duration.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from penstock_engine.native.batching import BatchShape, build_batch
from penstock_engine.native.kv_tensors import KvTensors
from penstock_engine.native.models.decoder import Decoder
from penstock_engine.native.plan import Chunk, StepPlan, StepResult
from penstock_engine.native.request import Drawn
from penstock_engine.native.sampling import Sampler


class Runner:
    """A loaded model with its KV tensors."""

    def __init__(self, decoder: Decoder, kv: KvTensors, shape: BatchShape) -> None:
        self._decoder = decoder
        self._kv = kv
        self._shape = shape
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
        return self._decoder.forward(build_batch(plan, self._shape))


def _rows_to_draw(logits: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """The last row of each chunk that draws, once for each sample that draws from it."""
    rows, last = [], -1
    for chunk in chunks:
        last += chunk.num_logits
        rows += [last] * len(chunk.draws)
    if len(rows) == logits.shape[0]:
        return logits
    return logits[torch.tensor(rows, device=logits.device)]
