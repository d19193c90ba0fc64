"""Plays routing rules on traces that were drawn, to tell whether a rule was made for one trace.

    python benchmarks/made_traces.py [--requests 4000] [--seed 1] [--busy 0.65] [--json]

Six kinds of traffic over 8 simulated workers of 3,000 blocks. Each trace is played as fast as makes
``least-prefill-work`` keep the workers' prefill ``--busy`` of the time. Prints mean and p99 time to
first token and hit rate of ``penstock`` and of the best rule of its peers in each of the three.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from random import Random

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from penstock_router.simulate.catalogue import OWN, Setup
from penstock_router.simulate.engine import EngineModel
from penstock_router.simulate.report import Summary
from penstock_router.simulate.run import Run, simulate_all
from penstock_router.simulate.trace import TraceRequest, read_trace

_YARDSTICK = "least-prefill-work"
_PEERS = (
    "dynamo", "smg", "smg-approximate", "llm-d", "llm-d-precise", "llm-d-sticky", "lmetric",
    _YARDSTICK,
)  # fmt: skip
_BLOCK_TOKENS = 512
_MODELS = (EngineModel(cache_blocks=3000, block_tokens=_BLOCK_TOKENS),) * 8
_CLOSE = 0.02
_TRIES = 8
_DOCUMENTS = 400


@dataclass(frozen=True, slots=True)
class Drawn:
    """A request: when it comes (seconds), the ids of its prompt's blocks, tokens of its answer."""

    at_s: float
    blocks: list[int]
    output_tokens: int


class Source:
    """Chance, and block ids that nobody has had."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self._ids = count(1)

    def blocks(self, low: int, high: int) -> list[int]:
        """So many new ones, small numbers being likelier."""
        number = round(low * (high / low) ** self.random.random())
        return list(islice(self._ids, number))

    def after(self, mean_s: float) -> float:
        """Seconds until the next of events that know nothing of each other."""
        return self.random.expovariate(1 / mean_s)

    def popular(self, things: Sequence[list[int]]) -> list[int]:
        """One of them, the n-th with a chance of 1 / n."""
        weights = [1 / n for n in range(1, len(things) + 1)]
        return self.random.choices(things, weights)[0]

    def answer(self) -> int:
        """Tokens of an answer."""
        return min(max(int(self.random.lognormvariate(5.0, 0.8)), 1), 2000)


def _unique(source: Source) -> Iterator[Drawn]:
    """Prompts that share nothing."""
    at_s = 0.0
    while True:
        at_s += source.after(1.0)
        yield Drawn(at_s, source.blocks(1, 24), source.answer())


def _assistant(source: Source) -> Iterator[Drawn]:
    """One long instruction before all questions."""
    at_s, instruction = 0.0, source.blocks(24, 24)
    while True:
        at_s += source.after(1.0)
        yield Drawn(at_s, instruction + source.blocks(1, 12), source.answer())


def _documents(source: Source) -> Iterator[Drawn]:
    """Questions about documents, some of which are asked about often."""
    at_s, documents = 0.0, [source.blocks(6, 120) for _ in range(_DOCUMENTS)]
    while True:
        at_s += source.after(1.0)
        yield Drawn(at_s, source.popular(documents) + source.blocks(1, 2), source.answer())


def _bursts(source: Source) -> Iterator[Drawn]:
    """Now and then one new prompt with many continuations at once."""
    at_s = 0.0
    while True:
        at_s += source.after(20.0)
        shared = source.blocks(12, 60)
        for _ in range(source.random.randint(8, 48)):
            yield Drawn(at_s, shared + source.blocks(1, 3), source.answer())


def _chat(source: Source) -> Iterator[Drawn]:
    """Conversations: every turn repeats all turns before it."""
    yield from _sessions(source, lambda: source.blocks(1, 24), turns=(1, 12), pause_s=120.0)


def _agents(source: Source) -> Iterator[Drawn]:
    """Loops of calls that grow, in quick succession, behind one of many instructions."""
    instructions = [source.blocks(2, 16) for _ in range(40)]

    def begin() -> list[int]:
        return source.popular(instructions) + source.blocks(1, 16)

    yield from _sessions(source, begin, turns=(3, 30), pause_s=8.0)


def _sessions(
    source: Source, begin: Callable[[], list[int]], turns: tuple[int, int], pause_s: float
) -> Iterator[Drawn]:
    """Several sessions beside each other, each turn longer than the last; in the order of time."""
    open_turns: list[tuple[float, list[int], int]] = []
    at_s = 0.0
    while True:
        at_s += source.after(1.0)
        open_turns.append((at_s, begin(), source.random.randint(*turns)))
        for due in sorted((t for t in open_turns if t[0] <= at_s), key=lambda turn: turn[0]):
            open_turns.remove(due)
            when_s, blocks, left = due
            yield Drawn(when_s, blocks, source.answer())
            if left > 1:
                longer = blocks + source.blocks(1, 3)
                open_turns.append((at_s + source.after(pause_s), longer, left - 1))


KINDS: dict[str, Callable[[Source], Iterator[Drawn]]] = {
    "unique": _unique,
    "assistant": _assistant,
    "documents": _documents,
    "bursts": _bursts,
    "chat": _chat,
    "agents": _agents,
}


def _write(path: Path, drawn: Iterable[Drawn]) -> None:
    """In Mooncake's format."""
    lines = (
        {
            "timestamp": int(one.at_s * 1000),
            "input_length": len(one.blocks) * _BLOCK_TOKENS,
            "output_length": one.output_tokens,
            "hash_ids": one.blocks,
        }
        for one in drawn
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _play(trace: Sequence[TraceRequest], policies: Sequence[str]) -> dict[str, Summary]:
    results = simulate_all(Run(policies, trace, Setup(_MODELS)), lambda *_: None)
    return {result.summary.policy: result.summary for result in results}


def _at_pace(path: Path, busy: float) -> list[TraceRequest]:
    """The trace, so fast that the yardstick's prefill is as busy as that."""
    speedup, slow, fast = 1.0, 0.0, float("inf")
    for _ in range(_TRIES):
        trace = read_trace(path, _BLOCK_TOKENS, speedup)
        share = _play(trace, [_YARDSTICK])[_YARDSTICK].prefill_utilization
        if abs(share - busy) <= _CLOSE:
            break
        slow, fast = (speedup, fast) if share < busy else (slow, speedup)
        speedup = speedup * busy / share if fast == float("inf") else (slow + fast) / 2
    return trace


def _row(kind: str, played: dict[str, Summary]) -> dict[str, object]:
    own, peers = played[OWN], [played[name] for name in _PEERS]
    mean, p99 = (
        min(peers, key=lambda peer: getattr(peer, field)) for field in ("ttft_mean_s", "ttft_p99_s")
    )
    return {
        "trace": kind,
        "ttft_mean_s": round(own.ttft_mean_s, 3),
        "of_best_mean": round(own.ttft_mean_s / mean.ttft_mean_s, 3),
        "best_mean": mean.policy,
        "ttft_p99_s": round(own.ttft_p99_s, 3),
        "of_best_p99": round(own.ttft_p99_s / p99.ttft_p99_s, 3),
        "best_p99": p99.policy,
        "hit_rate": round(own.hit_rate, 4),
        "best_hit_rate": round(max(peer.hit_rate for peer in peers), 4),
    }


def _shown(rows: Sequence[dict[str, object]]) -> Table:
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table


def main(options: argparse.Namespace) -> None:
    """Draw, play, print."""
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="pk-") as folder,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("", total=len(KINDS))
        for kind, draw in KINDS.items():
            progress.update(task, description=kind)
            path = Path(folder) / f"{kind}.jsonl"
            _write(path, islice(draw(Source(options.seed)), options.requests))
            rows.append(_row(kind, _play(_at_pace(path, options.busy), (OWN, *_PEERS))))
            progress.advance(task)
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    else:
        Console().print(_shown(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=4000, help="of each trace")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--busy", type=float, default=0.65, help="share of the prefill's time")
    parser.add_argument("--json", action="store_true")
    main(parser.parse_args())
