"""Drawing tokens from logits, for a whole batch at once.

Owns the order of adjustments and the randomness. For each row: repetition, frequency and presence penalties,
logit bias, stop tokens masked before ``min_tokens``; what a constraint forbids; then, unless greedy,
temperature, top-k, top-p, min-p, and one draw by inverse transform. Log-probabilities are of the
raw logits, before all of this.

Randomness is counter-based: a number depends on ``(seed, choice_index, position)`` alone, so a
token does not depend on who shares the batch, and a resumed sample draws on where it stopped.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from penstock_engine.api import Logprob
from penstock_engine.native.execution.truncation import truncate
from penstock_engine.native.scheduling.request import Ahead, Drawn, Sample
from penstock_engine.native.structured.masks import FollowedRows, RowMasks, StepRows

Drawer = Sample | Ahead
"""Whoever a token is drawn for: a sequence as it is, or as it will be if its drafts stand."""


class Rows(Protocol):
    """What is done to all rows of logits ``(rows, vocab)`` in float32 at once."""

    def forbid(self, logits: Tensor, masks: StepRows) -> None:
        """Set what is not allowed to minus infinity, in place."""
        ...

    def pick(
        self,
        logits: Tensor,
        temperatures: Sequence[float],
        points: Sequence[float],
        masks: StepRows | None = None,
    ) -> list[int]:
        """The best token where the temperature is 0, else the one its point in [0, 1) falls to.

        Of those that ``masks`` allows, which hears of them, and says which samples end instead, if it
        is ``FollowedRows``.
        """
        ...


_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_LEAST_TEMPERATURE = 1e-5
"""Below it a draw is the best token but for overflow, so the best token is taken."""


def uniform(seed: int, choice_index: int, position: int, lane: int = 0) -> float:
    """A number in [0, 1) that the arguments determine; ``lane`` sets several draws at a position apart.

    Source: splitmix64's finaliser over a Weyl step for each word (Steele, Lea and Flood, "Fast
    splittable pseudorandom number generators", OOPSLA 2014; https://prng.di.unimi.it/splitmix64.c).
    """
    state = 0
    for word in (seed, choice_index, position, lane):
        state = ((state ^ (word & _MASK)) + _GAMMA) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


class Sampler:
    """Draws one token for each row of logits."""

    def __init__(self, rows: Rows | None = None) -> None:
        self._rows: Rows = rows or TorchRows()

    def draw(
        self, logits: Tensor, samples: Sequence[Drawer], masks: StepRows | None = None
    ) -> list[Drawn]:
        """``logits`` is ``(samples, vocab)`` in float32 and is overwritten."""
        plain = [t for s in samples if (t := s.request.plain_temperature) is not None]
        if len(plain) == len(samples):
            drawn = self._pick(logits, samples, [_settled(t) for t in plain], masks)
        else:
            drawn = self._draw_adjusted(logits, samples, masks)
        for row, reason in masks.ends.items() if masks is not None else ():
            drawn[row] = Drawn((), finish=reason)
        return drawn

    def _draw_adjusted(
        self, logits: Tensor, samples: Sequence[Drawer], masks: StepRows | None
    ) -> list[Drawn]:
        logprobs = _raw_logprobs(logits, samples)
        _adjust(logits, samples)
        temperatures = _temperatures(samples)
        settings = [sample.request.spec.sampling for sample in samples]
        cut = [
            row for row, setting in enumerate(settings) if temperatures[row] and setting.truncates
        ]
        waiting = masks
        if cut:
            if masks is not None:  # what is forbidden counts for nothing where a rest is cut off
                self._rows.forbid(logits, masks)
                waiting = (
                    masks if isinstance(masks, FollowedRows) else None
                )  # those still have to hear
            _truncate(logits, samples, cut, temperatures)
        drawn = self._pick(logits, samples, temperatures, waiting)
        if logprobs is not None:
            return _with_logprobs(
                [token for row in drawn for token in row.token_ids], logprobs, samples
            )
        return drawn

    def _pick(
        self,
        logits: Tensor,
        samples: Sequence[Drawer],
        temperatures: Sequence[float],
        masks: StepRows | None,
    ) -> list[Drawn]:
        points = [
            uniform(sample.request.spec.sampling.seed, sample.choice_index, sample.num_output)
            if temperature
            else 0.0
            for temperature, sample in zip(temperatures, samples, strict=True)
        ]
        return [Drawn((token,)) for token in self._rows.pick(logits, temperatures, points, masks)]


class TorchRows:
    """``Rows`` with torch's operators, on any device."""

    def forbid(self, logits: Tensor, masks: StepRows) -> None:
        """See ``Rows.forbid``."""
        assert isinstance(masks, RowMasks), "followers are the kernel's"
        rows = masks.rows
        allowed = masks.allowed[: len(rows)]
        bits = np.unpackbits(allowed.view(np.uint8), axis=1, bitorder="little")
        forbidden = torch.from_numpy(bits[:, : logits.shape[1]] == 0).to(logits.device)
        if len(rows) == logits.shape[0]:
            logits.masked_fill_(forbidden, float("-inf"))
            return
        index = torch.tensor(rows, device=logits.device)
        logits[index] = logits[index].masked_fill(forbidden, float("-inf"))

    def pick(
        self,
        logits: Tensor,
        temperatures: Sequence[float],
        points: Sequence[float],
        masks: StepRows | None = None,
    ) -> list[int]:
        """See ``Rows.pick``; draws by inverse transform in vocabulary order."""
        if masks is not None:
            self.forbid(logits, masks)
        tokens = logits.argmax(dim=-1)
        random = [row for row, temperature in enumerate(temperatures) if temperature]
        if random:
            device = logits.device
            index = torch.tensor(random, device=device)
            scale = torch.tensor([[temperatures[row]] for row in random], device=device)
            # Cumulated in float64: at 150,000 tokens float32 would lose the tail.
            mass = torch.softmax(logits[index] / scale, dim=-1).double().cumsum(dim=-1)
            numbers = [[points[row]] for row in random]
            targets = torch.tensor(numbers, dtype=torch.float64, device=device) * mass[:, -1:]
            drawn = torch.searchsorted(mass, targets, right=True)
            tokens[index] = drawn.squeeze(1).clamp_(max=logits.shape[1] - 1)
        ids: list[int] = tokens.tolist()
        return ids


def _raw_logprobs(logits: Tensor, samples: Sequence[Drawer]) -> Tensor | None:
    if all(sample.request.spec.logprobs is None for sample in samples):
        return None
    return torch.log_softmax(logits, dim=-1)


def _with_logprobs(ids: Sequence[int], logprobs: Tensor, samples: Sequence[Drawer]) -> list[Drawn]:
    """Drawn tokens with their own log-probability and the best alternatives of those who asked."""
    chosen = logprobs.gather(1, torch.tensor(ids, device=logprobs.device).unsqueeze(1))
    own: list[float] = chosen.squeeze(1).tolist()
    widest = max(sample.request.spec.logprobs or 0 for sample in samples)
    values, indices = logprobs.topk(min(widest, logprobs.shape[1]), dim=-1)
    best_values: list[list[float]] = values.tolist()
    best_ids: list[list[int]] = indices.tolist()
    drawn = []
    for row, sample in enumerate(samples):
        wanted = sample.request.spec.logprobs
        if wanted is None:
            drawn.append(Drawn((ids[row],)))
            continue
        top = zip(best_ids[row][:wanted], best_values[row][:wanted], strict=True)
        drawn.append(Drawn((ids[row],), (Logprob(ids[row], own[row], tuple(top)),)))
    return drawn


def _adjust(logits: Tensor, samples: Sequence[Drawer]) -> None:
    """Penalties, bias and masked stop tokens, in place; rows without any are not touched."""
    for row, sample in enumerate(samples):
        spec = sample.request.spec
        if spec.sampling.penalises:
            _penalise(logits[row], sample)
        if spec.sampling.logit_bias:
            bias = spec.sampling.logit_bias
            index = torch.tensor(list(bias), device=logits.device)
            values = torch.tensor(list(bias.values()), dtype=logits.dtype, device=logits.device)
            logits[row].index_add_(0, index, values)
        if sample.num_output < spec.min_tokens and spec.stop_token_ids:
            logits[row, list(spec.stop_token_ids)] = float("-inf")


def _penalise(row: Tensor, sample: Drawer) -> None:
    """Repetition counts prompt and output (CTRL, https://arxiv.org/abs/1909.05858, section 4.1).

    Frequency and presence count the output only, as OpenAI's API does.
    """
    sampling, vocab = sample.request.spec.sampling, row.shape[0]
    tokens = torch.tensor(sample.tokens.tolist(), device=row.device)
    if sampling.repetition_penalty != 1.0:
        seen = torch.bincount(tokens, minlength=vocab) > 0
        punished = torch.where(
            row > 0, row / sampling.repetition_penalty, row * sampling.repetition_penalty
        )
        row.copy_(torch.where(seen, punished, row))
    if sampling.frequency_penalty or sampling.presence_penalty:
        counts = torch.bincount(tokens[sample.num_prompt :], minlength=vocab)
        row -= counts * sampling.frequency_penalty + (counts > 0) * sampling.presence_penalty


def _temperatures(samples: Sequence[Drawer]) -> list[float]:
    return [_settled(sample.request.spec.sampling.temperature) for sample in samples]


def _settled(temperature: float) -> float:
    return temperature if temperature >= _LEAST_TEMPERATURE else 0.0


def _truncate(
    logits: Tensor, samples: Sequence[Drawer], cut: Sequence[int], temperatures: list[float]
) -> None:
    """Cut what may not be drawn in some rows, in place; their temperatures are applied by that."""
    index = torch.tensor(cut, device=logits.device)
    scale = [[temperatures[row]] for row in cut]
    rows = logits[index] / torch.tensor(scale, dtype=logits.dtype, device=logits.device)
    truncate(rows, [samples[row].request.spec.sampling for row in cut])
    logits[index] = rows
    for row in cut:
        temperatures[row] = 1.0
