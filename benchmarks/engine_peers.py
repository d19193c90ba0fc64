"""Times Penstock's CPU engine against llama.cpp and OpenVINO GenAI, in the same run.

    python benchmarks/engine_peers.py FOLDER [--venv DIR] [--models S,M] [--precisions bf16,int8]
        [--cases single,sixteen,shared,prefill] [--rounds 5] [--threads 2] [--json]

FOLDER takes the checkpoints, their conversions and, unless ``--venv`` names another place, the
virtual environment of the peers: what is missing is made (llama-cpp-python is compiled, which takes
a quarter of an hour on two cores). All engines are loaded at once, each in a process of its own, and
take turns at each load. Each counts with its fastest round: what else runs on a machine only slows,
and slows engines whose threads wait for each other in lockstep more than others.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from make_checkpoints import SHAPES, VOCABULARY, ensure
from peers.processes import Answer, Engines, Peers

TABLE = "{:5} {:9} {:8} {:>9} {:>9} {:>9} {:>6}  {}  {}"


@dataclass(frozen=True, slots=True)
class Case:
    """Requests that arrive at once; ``least`` says how often faster than the better peer is asked."""

    requests: int
    shared: int
    own: int
    new_tokens: int
    least: dict[str, float]

    def prompts(self, draw: random.Random) -> list[list[int]]:
        """Prompts nobody has seen before."""
        first = _tokens(draw, self.shared)
        return [first + _tokens(draw, self.own) for _ in range(self.requests)]


CASES = {
    "single": Case(1, 0, 128, 128, {"S": 1.15, "M": 1.0}),
    "sixteen": Case(16, 0, 128, 128, {"S": 1.15, "M": 1.15}),
    "shared": Case(32, 1024, 32, 32, {"S": 2.0, "M": 2.0}),
    "prefill": Case(1, 0, 2048, 1, {"S": 1.0, "M": 1.0}),
}
INT8_LEAST = 1.3


@dataclass(frozen=True, slots=True)
class Row:
    """One case: least seconds by engine, and how many times sooner Penstock was done.

    ``agreement`` is the share of first tokens that a peer drew as Penstock did: the weights are
    random and the best tokens close, so rounding alone parts some.
    """

    model: str
    precision: str
    case: str
    seconds: dict[str, float]
    ratios: dict[str, float]
    agreement: dict[str, float]
    asked: float
    better_peer: float


def main() -> int:
    options = _options()
    peers = Peers(options.folder, options.venv or options.folder / "venv", _tell)
    rows = []
    if not options.json:
        names = (
            "model",
            "precision",
            "case",
            "penstock",
            "llama.cpp",
            "openvino",
            "ratio",
            "asked",
            "agreement",
        )
        print(TABLE.format(*names))
    for model in options.models.split(","):
        checkpoint = ensure(options.folder / model, SHAPES[model])
        for precision in options.precisions.split(","):
            _tell(f"{model} {precision}: starting the engines")
            with peers.start(checkpoint, precision, options.threads) as engines:
                for name in options.cases.split(","):
                    row = _measure(engines, (model, precision, name), options)
                    rows.append(row)
                    if not options.json:
                        _show(row)
    if options.json:
        load = os.getloadavg()[0]
        print(json.dumps({"load": load, "rows": [asdict(row) for row in rows]}, indent=1))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--precisions", default="bf16,int8")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _measure(engines: Engines, what: tuple[str, str, str], options: argparse.Namespace) -> Row:
    """All engines in turn, round after round; the first round warms up and does not count."""
    model, precision, name = what
    case, draw = CASES[name], random.Random(name)
    rounds: list[dict[str, Answer]] = []
    for turn in range(options.rounds + 1):
        _tell(f"{model} {precision}: {name}, round {turn} of {options.rounds}")
        load = {
            "prompts": case.prompts(draw),
            "new_tokens": case.new_tokens,
            "shared": case.shared,
        }
        rounds.append(engines.ask(load, alone=case.requests == 1, first=turn))
    return _row(what, case, rounds[1:])


def _row(what: tuple[str, str, str], case: Case, rounds: Sequence[dict[str, Answer]]) -> Row:
    others = [name for name in rounds[0] if name != "penstock"]
    seconds = {name: min(turn[name].seconds for turn in rounds) for name in rounds[0]}
    ratios = {name: seconds[name] / seconds["penstock"] for name in others}
    model, precision, name = what
    decodes = name in {"single", "sixteen"}
    return Row(
        model=model,
        precision=precision,
        case=name,
        seconds=seconds,
        ratios=ratios,
        agreement={e: sum(_agreements(rounds, e)) / len(rounds) for e in others},
        asked=INT8_LEAST if precision == "int8" and decodes else case.least[model],
        better_peer=min(ratios.values()),
    )


def _agreements(rounds: Sequence[dict[str, Answer]], engine: str) -> Iterator[float]:
    for turn in rounds:
        pairs = list(zip(turn[engine].tokens, turn["penstock"].tokens, strict=True))
        yield sum(theirs[0] == ours[0] for theirs, ours in pairs) / len(pairs)


def _show(row: Row) -> None:
    tokens = CASES[row.case]
    size = tokens.requests * tokens.new_tokens
    if row.case == "prefill":
        size = tokens.own
    rates = {name: size / seconds for name, seconds in row.seconds.items()}
    best = max((rate for name, rate in rates.items() if name.startswith("openvino")), default=0)
    figures = (f"{rate:.0f}" for rate in (rates["penstock"], rates.get("llama.cpp", 0), best))
    print(
        TABLE.format(
            *(row.model, row.precision, row.case, *figures),
            *(f"{row.better_peer:.2f}", f">= {row.asked} "),
            {name: round(value, 2) for name, value in row.agreement.items()},
        ),
        flush=True,
    )


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(1, VOCABULARY) for _ in range(count)]


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
