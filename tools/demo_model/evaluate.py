"""What the model card states: bits per byte, and how often the draft is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from demo_model.batches import Tokens
from demo_model.net import Llama


@torch.no_grad()
def bits_per_byte(
    model: Llama, files: Sequence[Tokens], byte_count: int, context: int, fresh: int
) -> float:
    """Return the mean cost, in bits, of a byte of the files.

    Every file is coded by itself, from the separator on, in windows that overlap: a token is
    counted once, in the first window that holds it, so that it sees at least ``context - fresh``
    tokens before it wherever the file has as many.

    Args:
        model: The model to measure.
        files: Every file's tokens, each beginning with the separator, which is not counted.
        byte_count: Length of the files' texts in UTF-8.
        context: Width of a window in tokens.
        fresh: How many tokens are new in each window after the first.
    """
    nats = 0.0
    device = model.embed_tokens.device
    for file in files:
        tokens = torch.from_numpy(file.astype(np.int64)).to(device)
        counted = 1
        while counted < len(tokens):
            end = min(len(tokens), counted + (context if counted == 1 else fresh))
            start = max(0, end - 1 - context)
            window = tokens[start:end]
            hidden = model.hidden(window[None, :-1])[0, counted - 1 - start :]
            pieces = zip(hidden.tensor_split(4), tokens[counted:end].tensor_split(4), strict=True)
            for piece, truth in pieces:
                logits = F.linear(piece, model.embed_tokens)
                nats += F.cross_entropy(logits, truth, reduction="sum").item()
            counted = end
    return nats / math.log(2) / byte_count


@dataclass(frozen=True)
class Acceptance:
    """How speculative decoding with the draft went."""

    rate: float
    """Share of drafted tokens that the model accepted."""
    tokens_per_step: float
    """Tokens produced by each verification, the model's own included."""
    steps: int
    """Verifications measured."""


@torch.no_grad()
def acceptance(
    model: Llama,
    draft: Llama,
    prompts: Sequence[Tokens],
    length: int,
    new_tokens: int,
    temperature: float,
) -> Acceptance:
    """Decode speculatively from held-out prompts and count.

    Args:
        model: The model that verifies.
        draft: The model that guesses.
        prompts: Beginnings to continue.
        length: Tokens drafted for each verification.
        new_tokens: Tokens to produce from each prompt.
        temperature: Zero for greedy decoding, else the temperature both sample at.
    """
    generator = torch.Generator().manual_seed(0)
    drafted = accepted = steps = 0
    for prompt in prompts:
        text = torch.from_numpy(prompt.astype(np.int64))
        goal = len(text) + new_tokens
        while len(text) < goal:
            guess = text
            guesses: list[Tensor] = []
            for _ in range(length):
                guesses.append(_distribution(draft, guess, 1, temperature)[0])
                guess = torch.cat((guess, torch.multinomial(guesses[-1], 1, generator=generator)))
            truth = _distribution(model, guess, length + 1, temperature)
            good, last = _verify(guess[-length:], guesses, truth, generator)
            text = torch.cat((guess[: len(text) + good], last))
            drafted, accepted, steps = drafted + length, accepted + good, steps + 1
    return Acceptance(accepted / drafted, (accepted + steps) / steps, steps)


def _distribution(model: Llama, tokens: Tensor, positions: int, temperature: float) -> Tensor:
    """Return the next-token distributions at the last positions, one-hot if greedy."""
    hidden = model.hidden(tokens[None].to(model.embed_tokens.device))[0, -positions:]
    logits = F.linear(hidden, model.embed_tokens).float().cpu()
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return (logits / temperature).softmax(-1)


def _verify(
    guess: Tensor, guesses: list[Tensor], truth: Tensor, generator: torch.Generator
) -> tuple[int, Tensor]:
    """Return how many drafted tokens stand, and the token the model itself adds."""
    for i, token in enumerate(guess.tolist()):
        ratio = truth[i, token] / guesses[i][token]
        if torch.rand((), generator=generator) >= ratio:
            rest = (truth[i] - guesses[i]).clamp_min(0)
            return i, torch.multinomial(rest, 1, generator=generator)
    return len(guess), torch.multinomial(truth[len(guess)], 1, generator=generator)
