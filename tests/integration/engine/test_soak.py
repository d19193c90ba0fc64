"""Twenty seconds of everything at once: nothing leaks, nothing sticks, answers are those given alone.

``benchmarks/soak.py`` runs the same for as long as one likes.
"""

import calendar
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.kv.memory import KvMemory
from penstock_engine.native.scheduling.limits import Limits
from penstock_engine.native.settings import NativeSettings
from penstock_engine.native.structured.vocabulary import Vocabulary
from penstock_models import DEMO, DEMO_DRAFT
from penstock_testing.engines.adapters import write_adapter
from penstock_testing.engines.soak import CheckedScheduler, Soak, SoakPlan, solo_answers
from penstock_testing.engines.soak_requests import Bounds
from penstock_text.tokenizer import Tokenizer

CODE = Path(calendar.__file__).read_text(encoding="utf-8")
ADAPTERS = ("ada", "ben")
SETTINGS = NativeSettings(
    DEMO,
    device="cpu",
    kv_blocks=40,
    max_batch=8,
    max_batched_tokens=64,
    max_waiting=12,
    threads=1,
    speculation="auto",
    draft_model=DEMO_DRAFT,
)


@pytest.mark.timeout(300)
async def test_a_short_soak_finds_nothing(tmp_path: Path) -> None:
    for seed, name in enumerate(ADAPTERS):
        write_adapter(tmp_path / name, DEMO, seed=seed)
    settings = replace(SETTINGS, adapters=tmp_path, max_adapters=len(ADAPTERS) - 1)
    tokenizer = Tokenizer.load(DEMO)
    words = Vocabulary(
        [tokenizer.text_bytes(i) for i in range(tokenizer.vocab_size)],
        partial(tokenizer.encode, add_special_tokens=False),
    )
    code = tokenizer.encode(CODE)
    made: list[CheckedScheduler] = []

    def checked(limits: Limits, memory: KvMemory) -> CheckedScheduler:
        made.append(CheckedScheduler(limits, memory))
        return made[0]

    engine = NativeEngine(settings, words, checked)
    info = engine.info()
    bounds = Bounds(
        [code, code[200:]],
        info.max_context_tokens,
        info.vocab_size,
        info.eos_token_ids,
        ADAPTERS,
    )
    plan = SoakPlan(seconds=15)
    await engine.start()
    try:
        fixed = await solo_answers(engine, bounds, plan)
        report = await Soak(engine, made[0], bounds, tokenizer.decode).run(
            plan, fixed, lambda _: None
        )
    finally:
        await engine.close()

    assert report.failures == []
    assert report.compared > 0
    assert report.steps > 100
    assert report.preemptions > 0
    assert report.drafted_tokens > 0
    assert report.peak_pages <= report.capacity_pages
