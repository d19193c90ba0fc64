"""The scheduler under any order of arrivals, aborts and steps: all finish, nothing leaks."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock_core.errors import PromptTooLong
from penstock_engine.api import (
    Admitted,
    EngineRequest,
    FinishReason,
    KvStored,
    Priority,
    RequestDone,
    TokenOut,
)
from penstock_engine.native.kv.memory import KvMemory
from penstock_engine.native.scheduling.limits import Limits
from penstock_engine.native.scheduling.plan import StepPlan, StepResult
from penstock_engine.native.scheduling.request import Drawn
from penstock_engine.native.scheduling.scheduler import Scheduler

BLOCK = 4
STOP = 3
TOKEN = st.integers(0, STOP)


@dataclass
class Expectation:
    """What is known of a request and what it has put out so far."""

    spec: EngineRequest
    admitted: bool = False
    next_position: dict[int, int] = field(default_factory=dict)
    finished: dict[int, FinishReason] = field(default_factory=dict)


class Tensors:
    """KV pages that remember what was computed into them, to catch a wrong page or a lost copy."""

    def __init__(self, num_pages: int) -> None:
        self.pages: list[dict[int, tuple[int, ...]]] = [{} for _ in range(num_pages)]

    def run(self, plan: StepPlan, draw: st.DataObject) -> StepResult:
        copied = [(target, dict(self.pages[source])) for source, target in plan.copies]
        for target, content in copied:
            self.pages[target] = content
        for chunk in plan.chunks:
            sample = chunk.sample
            known = [*sample.tokens, *chunk.drafts]
            for position in range(chunk.start, chunk.start + chunk.count):
                history = tuple(known[: position + 1])
                self.pages[sample.pages[position // BLOCK]][position % BLOCK] = history
            end = chunk.start + chunk.count
            for position in range(end):  # what attention would read
                stored = self.pages[sample.pages[position // BLOCK]].get(position % BLOCK)
                assert stored == tuple(known[: position + 1]), "wrong KV under a token"
        chunks = [chunk for chunk in plan.chunks for _ in chunk.draws]
        tokens = draw.draw(st.lists(TOKEN, min_size=len(chunks), max_size=len(chunks)))
        drawn = []
        for chunk, token in zip(chunks, tokens, strict=True):
            stood = draw.draw(st.integers(0, len(chunk.drafts)))
            drawn.append(Drawn((*chunk.drafts[:stood], token)))
        return StepResult(drawn, 0.01)


class SchedulerMachine(RuleBasedStateMachine):
    """Submits, aborts and steps; a model beside it follows what every request is owed."""

    @initialize(capacity=st.integers(2, 10), max_batch=st.integers(1, 4), extra=st.integers(1, 12))
    def start(self, capacity: int, max_batch: int, extra: int) -> None:
        self.memory = KvMemory(capacity, BLOCK)
        limits = Limits(max_batch, max_batch + extra, max_waiting=50, max_context=200)
        self.scheduler = Scheduler(limits, self.memory)
        self.tensors = Tensors(capacity)
        self.live: dict[str, Expectation] = {}
        self.resident: set[int] = set()
        self.count = 0
        self.clock = 0.0
        self.busy_s = self.attributed_s = 0.0

    @rule(
        shared=st.integers(0, 3),
        own=st.lists(st.integers(0, 2), min_size=1, max_size=9),
        max_tokens=st.integers(0, 12),
        n=st.integers(1, 3),
        priority=st.sampled_from(Priority),
        emitted=st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=3),
        min_tokens=st.integers(0, 2),
    )
    def submit(
        self,
        shared: int,
        own: list[int],
        max_tokens: int,
        n: int,
        priority: Priority,
        emitted: list[list[int]],
        min_tokens: int,
    ) -> None:
        self.count += 1
        spec = EngineRequest(
            f"r{self.count}",
            [*([0, 1, 2, 0] * shared), *own],
            max_tokens,
            stop_token_ids=frozenset({STOP}),
            min_tokens=min_tokens,
            n=n,
            priority=priority,
            emitted=[tokens[:max_tokens] for tokens in emitted[:n]],
        )
        total = len(spec.prompt) + max_tokens
        pages = self.memory.pages_for(max(total - 1, len(spec.prompt)))
        try:
            self.scheduler.submit(spec, self.clock)
        except PromptTooLong:
            assert pages > self.memory.capacity
            return
        assert pages <= self.memory.capacity
        starts = {i: len(tokens) for i, tokens in enumerate(spec.emitted)}
        expected = Expectation(spec, next_position={i: starts.get(i, 0) for i in range(n)})
        self.live[spec.request_id] = expected
        self._take_outputs()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), choice=st.none() | st.integers(0, 2))
    def abort(self, data: st.DataObject, choice: int | None) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        self.scheduler.abort(request_id, choice, self.clock)
        self._take_outputs()
        if choice is None:
            assert request_id not in self.live

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        self.clock += 1
        guess = st.lists(TOKEN, max_size=9)
        drafts = {
            s: data.draw(guess) for s in self.scheduler.decoding() if data.draw(st.booleans())
        }
        plan = self.scheduler.plan(self.clock, drafts)
        self.scheduler.check_integrity()
        if plan is None:
            assert not self.live
            return
        self._check_drafts(plan)
        assert plan.num_tokens <= self.scheduler.limits.max_batched_tokens
        seconds = data.draw(st.floats(0.0001, 0.5))
        self.busy_s += seconds
        result = self.tensors.run(plan, data)
        self.scheduler.apply(plan, StepResult(result.drawn, seconds), self.clock)
        self._take_outputs()

    def _check_drafts(self, plan: StepPlan) -> None:
        """A guess is checked only where its token could still be of use."""
        for chunk in plan.chunks:
            spec, sample = chunk.sample.request.spec, chunk.sample
            if chunk.drafts:
                assert sample.num_output + len(chunk.drafts) < spec.max_tokens
                assert chunk.draws == (sample,)
                assert chunk.num_logits == chunk.count == 1 + len(chunk.drafts)

    def _take_outputs(self) -> None:
        for request_id, output in self.scheduler.take_outputs():
            expected = self.live[request_id]
            match output:
                case Admitted():
                    assert not expected.admitted
                    expected.admitted = True
                    assert output.cached_tokens <= len(expected.spec.prompt)
                case TokenOut():
                    self._check_tokens(expected, output)
                case RequestDone():
                    self.attributed_s += output.share.seconds
                    assert set(expected.finished) == set(range(expected.spec.n))
                    del self.live[request_id]

    def _check_tokens(self, expected: Expectation, output: TokenOut) -> None:
        choice, limit = output.choice_index, expected.spec.max_tokens
        assert choice not in expected.finished
        assert output.first_position == expected.next_position[choice]
        # Stop tokens below min_tokens are ordinary: a real sampler masks them, this one may draw them.
        ordinary = max(expected.spec.min_tokens - output.first_position, 0)
        assert STOP not in output.token_ids[ordinary:]
        expected.next_position[choice] += len(output.token_ids)
        assert expected.next_position[choice] <= limit
        if output.finish is None:
            assert expected.next_position[choice] < limit
            return
        expected.finished[choice] = output.finish
        if output.finish is FinishReason.LENGTH:
            assert expected.next_position[choice] == limit
        if output.finish is FinishReason.STOP:
            assert output.matched_token == STOP

    @invariant()
    def nothing_leaks(self) -> None:
        self.scheduler.check_integrity()
        counts = self.scheduler.counts()
        assert counts.running + counts.waiting == len(self.live)
        if not counts.running:
            assert self.memory.used_pages == 0

    @invariant()
    def events_tell_the_resident_set(self) -> None:
        for event in self.memory.take_events():
            keys = set(event.hashes)
            if isinstance(event, KvStored):
                assert not keys & self.resident
                self.resident |= keys
            else:
                self.resident -= keys
        assert self.resident == self.memory.resident_hashes()

    def teardown(self) -> None:
        """Whatever is left finishes by stepping alone, in a bounded number of steps."""
        owed = sum(
            e.spec.n * (len(e.spec.prompt) + e.spec.max_tokens + 1) for e in self.live.values()
        )
        steps = 0
        while self.live:
            steps += 1
            assert steps <= 60 * owed + 100, "livelock"
            self.clock += 1
            plan = self.scheduler.plan(self.clock)
            assert plan is not None
            drawn = [Drawn((1,)) for chunk in plan.chunks for _ in chunk.draws]
            self.busy_s += 0.01
            self.scheduler.apply(plan, StepResult(drawn, 0.01), self.clock)
            self._take_outputs()
        assert self.memory.used_pages == 0
        assert not self.scheduler.has_work
        # Whatever became of the requests, each second the engine computed was somebody's.
        assert abs(self.attributed_s - self.busy_s) < 1e-9 * (1 + self.busy_s)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
