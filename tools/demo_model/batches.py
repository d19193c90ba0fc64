"""Rows of tokens to train on, drawn without replacement in every pass over the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[np.int32]
_BLOCK = 4096
_POOL_ROWS = 96


class Batches:
    """An endless supply of shuffled rows whose length may change from batch to batch."""

    def __init__(self, files: Sequence[Tokens], repeats: Sequence[int], seed: int) -> None:
        """Begin the first pass.

        Args:
            files: Every file's tokens, each beginning with the separator.
            repeats: How often each file comes in one pass.
            seed: Makes the order repeatable.
        """
        self.files = files
        self.order = np.repeat(np.arange(len(files)), repeats)
        self.seed = seed
        self.epoch = 0
        self.block = 0
        self.pool: list[Tokens] = []
        self.context = 0
        self.rng = np.random.default_rng(seed)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        """Put the files in a new order and cut the stream at new places."""
        rng = np.random.default_rng([self.seed, self.epoch])
        stream = np.concatenate([self.files[i] for i in rng.permutation(self.order)])
        self.stream = np.roll(stream, int(rng.integers(_BLOCK)))
        self.blocks = rng.permutation((len(stream) - 1) // _BLOCK)

    def _next_block(self) -> Tokens:
        """Return the next block and the one token after it."""
        if self.block >= len(self.blocks):
            self.epoch, self.block = self.epoch + 1, 0
            self._begin_epoch()
        start = int(self.blocks[self.block]) * _BLOCK
        self.block += 1
        return self.stream[start : start + _BLOCK + 1]

    def take(self, rows: int, context: int) -> Tensor:
        """Return a batch of ``rows`` by ``context + 1`` tokens.

        Args:
            rows: How many rows.
            context: How many tokens of each are predicted from; divides 4096.
        """
        if context != self.context:
            self.context, self.pool = context, []
        while len(self.pool) < max(_POOL_ROWS * 512 // context, 2 * rows):
            block = self._next_block()
            self.pool += [block[i : i + context + 1] for i in range(0, _BLOCK, context)]
        chosen = []
        for _ in range(rows):
            index = int(self.rng.integers(len(self.pool)))
            self.pool[index], self.pool[-1] = self.pool[-1], self.pool[index]
            chosen.append(self.pool.pop())
        return torch.from_numpy(np.stack(chosen).astype(np.int64))

    @property
    def passes(self) -> float:
        """How many passes over the corpus have been drawn."""
        return self.epoch + self.block / len(self.blocks)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; rows drawn but not yet used are passed over."""
        return {"epoch": self.epoch, "block": self.block}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.epoch, self.block = state["epoch"], state["block"]
        self.rng = np.random.default_rng([self.seed, self.epoch, self.block])
        self._begin_epoch()
