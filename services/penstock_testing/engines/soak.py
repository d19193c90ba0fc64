"""Runs random requests against a native engine for as long as wanted and checks every invariant.

Checked at each step: pages, queues and phases agree and memory keeps its budget. Of each answer:
order, length, constraint. Of a fixed set of requests: the tokens each had alone, in an engine
without speculation. At the end: nothing is held, cache events tell what is resident, and the
process did not grow.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from penstock_core.errors import Overloaded, PromptTooLong
from penstock_engine.api import (
    EngineOutput,
    EngineRequest,
    FinishReason,
    KvStored,
    RequestDone,
    TokenOut,
)
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.scheduling.drafts import NO_DRAFTS
from penstock_engine.native.scheduling.plan import Drafts, StepPlan, StepResult
from penstock_engine.native.scheduling.scheduler import Scheduler
from penstock_testing.engines.soak_requests import Bounds, Errand, Fate, RequestMaker, complaint

Tokens = dict[int, list[int]]

_DEADLINE_S = 180.0
"""For one request in a crowd; one that takes longer is taken for stuck."""
_MOST_GROWTH_MIB = 48.0
_TELL_EVERY_S = 10.0
_MOST_FAILURES = 20


class CheckedScheduler(Scheduler):
    """The scheduler, checking itself around each step; ``steps`` counts them."""

    steps = 0
    peak_pages = 0

    def plan(self, now: float, drafts: Drafts = NO_DRAFTS) -> StepPlan | None:
        """See ``Scheduler.plan``."""
        plan = super().plan(now, drafts)
        self.check_integrity()
        if plan is not None:
            assert plan.num_tokens <= self.limits.max_batched_tokens, "a step is over its budget"
        self.peak_pages = max(self.peak_pages, self.memory.used_pages)
        return plan

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """See ``Scheduler.apply``."""
        super().apply(plan, result, now)
        self.check_integrity()
        self.steps += 1


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """How long, how many callers at once, and how many requests must say what they said alone."""

    seconds: float
    callers: int = 16
    fixed: int = 16
    seed: int = 1


@dataclass(slots=True)
class SoakReport:
    """What happened. ``failures`` names what was wrong, the first few of them.

    ``tokens`` were put out, ``peak_pages`` is the most that sequences held; memory is in MiB, from a
    quarter of the time on.
    """

    seconds: float = 0.0
    requests: int = 0
    fates: dict[str, int] = field(default_factory=dict)
    finishes: dict[str, int] = field(default_factory=dict)
    compared: int = 0
    refused_full: int = 0
    refused_impossible: int = 0
    tokens: int = 0
    drafted_tokens: int = 0
    accepted_draft_tokens: int = 0
    cached_tokens: int = 0
    steps: int = 0
    preemptions: int = 0
    peak_pages: int = 0
    capacity_pages: int = 0
    rss_mib: float = 0.0
    rss_growth_mib: float = 0.0
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        """Note a failure."""
        if len(self.failures) < _MOST_FAILURES:
            self.failures.append(what)


@dataclass(slots=True)
class _Answer:
    """What a request put out so far."""

    tokens: Tokens = field(default_factory=dict)
    finishes: dict[int, FinishReason] = field(default_factory=dict)
    outputs: int = 0
    done: RequestDone | None = None

    def take(self, output: EngineOutput, request: EngineRequest) -> str | None:
        """Add an output; what is wrong with it, if something is."""
        self.outputs += 1
        if isinstance(output, RequestDone):
            self.done = output
        if not isinstance(output, TokenOut):
            return None
        choice = output.choice_index
        if choice in self.finishes:
            return "a sample went on behind its end"
        before = request.emitted[choice] if choice < len(request.emitted) else ()
        known = self.tokens.setdefault(choice, list(before))
        if output.first_position != len(known):
            return f"position {output.first_position} behind {len(known)} tokens"
        known.extend(output.token_ids)
        if output.finish is not None:
            self.finishes[choice] = output.finish
        return None


async def solo_answers(
    engine: NativeEngine, bounds: Bounds, plan: SoakPlan
) -> list[tuple[EngineRequest, Tokens]]:
    """The fixed requests, and what each says with the engine to itself."""
    maker = RequestMaker(bounds, f"fixed-{plan.seed}")
    found = []
    for _ in range(plan.fixed):
        request = replace(maker.request(), logprobs=None)
        answer = _Answer()
        async for output in engine.generate(request):
            answer.take(output, request)
        found.append((request, answer.tokens))
    return found


class Soak:
    """One soak of a started engine that was made with a ``CheckedScheduler``."""

    def __init__(
        self,
        engine: NativeEngine,
        scheduler: CheckedScheduler,
        bounds: Bounds,
        decode: Callable[[list[int]], str],
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._bounds = bounds
        self._decode = decode
        self._report = SoakReport(capacity_pages=scheduler.memory.capacity)
        self._resident: set[int] = set()
        self._until = 0.0

    async def run(
        self,
        plan: SoakPlan,
        fixed: list[tuple[EngineRequest, Tokens]],
        tell: Callable[[str], None],
    ) -> SoakReport:
        """Serve ``plan.callers`` callers at once; fixed requests must answer as they did alone."""
        began = time.monotonic()
        self._until = began + plan.seconds
        beside = [
            asyncio.create_task(self._follow_events()),
            asyncio.create_task(self._watch(plan.seconds, tell)),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for caller in range(plan.callers):
                    group.create_task(self._call(f"{plan.seed}-{caller}", fixed))
            await self._check_rest()
        except* Exception as errors:  # noqa: BLE001 - whatever it was, the report tells it
            for error in errors.exceptions:
                self._report.fail(repr(error))
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        return self._conclude(time.monotonic() - began)

    # One caller.

    async def _call(self, name: str, fixed: list[tuple[EngineRequest, Tokens]]) -> None:
        rng, maker = random.Random(name), RequestMaker(self._bounds, name)
        count = 0
        while time.monotonic() < self._until:
            count += 1
            lot = rng.random()
            if lot < 0.02:
                await self._refused(maker.impossible())
            elif lot < 0.2:
                request, expected = rng.choice(fixed)
                renamed = replace(request, request_id=f"{name}-fixed-{count}")
                await self._serve(Errand(renamed), expected)
            else:
                await self._serve(maker.errand(), None)

    async def _refused(self, request: EngineRequest) -> None:
        try:
            async for _ in self._engine.generate(request):
                self._report.fail(f"{request.request_id} can never fit and was served")
        except PromptTooLong:
            self._report.refused_impossible += 1

    async def _serve(self, errand: Errand, expected: Tokens | None) -> None:
        request, answer, report = errand.request, _Answer(), self._report
        report.requests += 1
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await self._hear(errand, answer)
        except Overloaded:
            report.refused_full += 1
            await asyncio.sleep(0.01)
            return
        except TimeoutError:
            report.fail(f"{request.request_id} took over {_DEADLINE_S} s")
            return
        _count(report.fates, errand.fate.value)
        self._judge(request, answer)
        if errand.fate is Fate.FINISH and expected is not None:
            report.compared += 1
            if answer.tokens != expected:
                report.fail(f"{request} said {answer.tokens}, alone {expected}")

    async def _hear(self, errand: Errand, answer: _Answer) -> None:
        """Its outputs, until its fate befalls it."""
        request = errand.request
        stream = cast("AsyncGenerator[EngineOutput, None]", self._engine.generate(request))
        async with aclosing(stream) as outputs:
            async for output in outputs:
                wrong = answer.take(output, request)
                if wrong is not None:
                    self._report.fail(f"{request.request_id}: {wrong}")
                if answer.outputs <= errand.after:
                    continue
                if errand.fate is Fate.CLOSE:
                    return
                if errand.fate is Fate.ABORT:
                    self._engine.abort(request.request_id)
                elif errand.fate is Fate.ABORT_SAMPLE:
                    self._engine.abort(request.request_id, request.n - 1)

    def _judge(self, request: EngineRequest, answer: _Answer) -> None:
        report, done = self._report, answer.done
        report.tokens += sum(map(len, answer.tokens.values()))
        if done is not None:
            report.drafted_tokens += done.drafted_tokens
            report.accepted_draft_tokens += done.accepted_draft_tokens
            report.cached_tokens += done.cached_tokens
            if len(answer.finishes) != request.n:
                report.fail(f"{request.request_id}: {len(answer.finishes)} ends of {request.n}")
        for choice, finish in answer.finishes.items():
            _count(report.finishes, finish.value)
            tokens = answer.tokens[choice]
            wrong = complaint(request, tokens, finish, lambda said=tokens: self._decode(said))  # type: ignore[misc]
            if wrong is not None:
                report.fail(f"{request.request_id}: {wrong}")

    # Beside them.

    async def _follow_events(self) -> None:
        async for events in self._engine.kv_events():
            for event in events:
                if isinstance(event, KvStored):
                    self._resident |= set(event.hashes)
                else:
                    self._resident -= set(event.hashes)

    async def _watch(self, seconds: float, tell: Callable[[str], None]) -> None:
        """Tell how it goes; memory counts from a quarter of the time on."""
        await asyncio.sleep(seconds / 4)
        base = _rss_mib()
        while True:
            await asyncio.sleep(min(_TELL_EVERY_S, seconds / 4))
            report = self._report
            report.rss_mib = _rss_mib()
            report.rss_growth_mib = report.rss_mib - base
            tell(
                f"{max(self._until - time.monotonic(), 0):.0f} s to go: {report.requests} requests, "
                f"{self._scheduler.steps} steps, {self._scheduler.preemptions} preemptions, "
                f"{report.rss_mib:.0f} MiB ({report.rss_growth_mib:+.1f}), "
                f"{len(report.failures)} failures"
            )

    async def _check_rest(self) -> None:
        """Nobody is served any more: nothing may be held, and events tell what is resident."""
        async with asyncio.timeout(_DEADLINE_S):
            while self._engine.state().running or self._engine.state().waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while self._resident != self._scheduler.memory.resident_hashes():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        if self._engine.state().used_blocks:
            self._report.fail(f"{self._engine.state().used_blocks} pages are held by nobody")

    def _conclude(self, seconds: float) -> SoakReport:
        report, scheduler = self._report, self._scheduler
        report.seconds = seconds
        report.steps, report.preemptions = scheduler.steps, scheduler.preemptions
        report.peak_pages = scheduler.peak_pages
        if self._engine.state().failed:
            report.fail("the engine failed")
        if report.rss_growth_mib > _MOST_GROWTH_MIB:
            report.fail(f"the process grew by {report.rss_growth_mib:.0f} MiB")
        return report


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _rss_mib() -> float:
    """Resident memory of this process; 0 where /proc is not there."""
    path = Path("/proc/self/statm")
    if not path.exists():
        return 0.0
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
