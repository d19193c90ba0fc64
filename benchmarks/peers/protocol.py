"""How an engine's process talks with the benchmark: a line of JSON in, a line of JSON out.

Owns the channel. What libraries print goes to standard error, so it cannot mix with answers.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """Requests that arrive at once: prompts, and how many tokens each shall get.

    ``shared`` is how many first tokens all prompts have in common, for engines that must be told.
    """

    prompts: Sequence[Sequence[int]]
    new_tokens: int
    shared: int = 0


Run = Callable[[Load], list[list[int]]]
"""Serve a load; the new tokens of each prompt."""


def serve(start: Callable[[], Run]) -> None:
    """Load the engine, say so, then time each load that comes in until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    run = start()
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        load = Load(**json.loads(line))
        began = time.perf_counter()
        tokens = run(load)
        seconds = time.perf_counter() - began
        assert all(len(row) == load.new_tokens for row in tokens), [len(row) for row in tokens]
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=answers)
