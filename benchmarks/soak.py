"""Serve random requests for a while and check every invariant of the native engine all the time.

    python benchmarks/soak.py [--minutes 20] [--callers 16] [--speculation auto] [--json]

Requests differ in length, shared beginnings, priority, samples, constraints, sampling, adapters, speculation
and fate (some are aborted, some resumed); memory is small, so that sequences are preempted. A fixed
set of them must say what each said alone. Exit status 1 if anything was wrong.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

from rich.console import Console

from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.kv.memory import KvMemory
from penstock_engine.native.scheduling.limits import Limits
from penstock_engine.native.settings import NativeSettings
from penstock_engine.native.structured.vocabulary import Vocabulary
from penstock_models import DEMO, DEMO_DRAFT
from penstock_testing.engines.adapters import write_adapter
from penstock_testing.engines.soak import CheckedScheduler, Soak, SoakPlan, SoakReport, solo_answers
from penstock_testing.engines.soak_requests import Bounds
from penstock_text.tokenizer import Tokenizer

DOCUMENTS = ("calendar", "dataclasses", "glob", "mailbox")
"""Modules of the standard library whose beginnings are prompts."""
ADAPTERS = ("ada", "ben", "cyd")
"""One more than there is room for, so that they make room for one another."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--speculation", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapters = Path(folder)
        for seed, name in enumerate(ADAPTERS):
            write_adapter(adapters / name, DEMO, seed=seed)
        report = run(options, adapters)
    if options.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        Console().print(report)
    return 1 if report.failures else 0


def run(options: argparse.Namespace, adapters: Path) -> SoakReport:
    settings = NativeSettings(
        DEMO,
        kv_blocks=40,
        max_batch=8,
        max_batched_tokens=64,
        max_waiting=12,
        speculation=options.speculation,
        draft_model=DEMO_DRAFT if options.speculation in {"draft", "auto"} else None,
        dtype=options.dtype,
        quantization=options.quantization,
        adapters=adapters,
        max_adapters=len(ADAPTERS) - 1,
    )
    plan = SoakPlan(options.minutes * 60, options.callers, seed=options.seed)
    return asyncio.run(soak(settings, plan, Console(stderr=True)))


async def soak(settings: NativeSettings, plan: SoakPlan, console: Console) -> SoakReport:
    tokenizer = Tokenizer.load(settings.model)
    tokens = [tokenizer.text_bytes(i) for i in range(tokenizer.vocab_size)]
    words = Vocabulary(tokens, partial(tokenizer.encode, add_special_tokens=False))
    plain = NativeEngine(replace(settings, speculation="none", draft_model=None), words)
    info = plain.info()
    library = Path(os.__file__).parent
    bounds = Bounds(
        [tokenizer.encode((library / f"{name}.py").read_text()) for name in DOCUMENTS],
        info.max_context_tokens,
        info.vocab_size,
        info.eos_token_ids,
        ADAPTERS,
    )
    console.print("requests that must answer alike are run alone", style="dim")
    await plain.start()
    try:
        fixed = await solo_answers(plain, bounds, plan)
    finally:
        await plain.close()
    made: list[CheckedScheduler] = []

    def checked(limits: Limits, memory: KvMemory) -> CheckedScheduler:
        made.append(CheckedScheduler(limits, memory))
        return made[0]

    engine = NativeEngine(settings, words, checked)
    await engine.start()
    try:
        return await Soak(engine, made[0], bounds, tokenizer.decode).run(
            plan, fixed, lambda line: console.print(line, style="dim")
        )
    finally:
        await engine.close()


if __name__ == "__main__":
    sys.exit(main())
