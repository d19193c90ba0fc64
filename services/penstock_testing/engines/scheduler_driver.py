"""A native scheduler run by hand, step by step, without a model."""

from collections.abc import Callable, Sequence

from penstock_engine.api import Admitted, EngineOutput, EngineRequest, RequestDone
from penstock_engine.native.kv.memory import KvMemory
from penstock_engine.native.scheduling.limits import Limits
from penstock_engine.native.scheduling.plan import StepPlan, StepResult
from penstock_engine.native.scheduling.request import Drawn
from penstock_engine.native.scheduling.scheduler import Scheduler

BLOCK = 4


class Driver:
    """A scheduler whose steps draw token 1 and take a tenth of a second, or as ``cost_s`` says."""

    def __init__(
        self,
        *,
        pages: int = 64,
        batch: int = 4,
        budget: int = 16,
        waiting: int = 8,
        cost_s: Callable[[StepPlan], float] = lambda _: 0.1,
    ) -> None:
        self._cost_s = cost_s
        self.memory = KvMemory(pages, BLOCK)
        limits = Limits(batch, budget, max_waiting=waiting, max_context=100)
        self.scheduler = Scheduler(limits, self.memory)
        self.outputs: dict[str, list[EngineOutput]] = {}
        self.now = 0.0

    def submit(
        self, name: str, prompt: Sequence[int], max_tokens: int = 4, **changes: object
    ) -> None:
        """Let a request wait; ``changes`` are more fields of its ``EngineRequest``."""
        spec = EngineRequest(name, prompt, max_tokens, **changes)  # type: ignore[arg-type]
        self.scheduler.submit(spec, self.now)

    def plan(self) -> StepPlan:
        """The next step, of sound queues and memory."""
        plan = self.scheduler.plan(self.now)
        assert plan is not None
        self.scheduler.check_integrity()
        return plan

    def step(self) -> dict[str, int]:
        """Run a step; tells how many tokens of each request it computed."""
        plan = self.plan()
        drawn = [Drawn((1,)) for chunk in plan.chunks for _ in chunk.draws]
        seconds = self._cost_s(plan)
        self.now += seconds
        self.scheduler.apply(plan, StepResult(drawn, seconds), self.now)
        self.take()
        computed: dict[str, int] = {}
        for chunk in plan.chunks:
            name = chunk.sample.request.spec.request_id
            computed[name] = computed.get(name, 0) + chunk.count
        return computed

    def take(self) -> None:
        """Note what callers hear."""
        for name, output in self.scheduler.take_outputs():
            self.outputs.setdefault(name, []).append(output)

    def run(self) -> None:
        """Step until nobody waits."""
        while self.scheduler.has_work:
            self.step()

    def admitted(self, name: str) -> Admitted:
        """How a request was admitted."""
        first = self.outputs[name][0]
        assert isinstance(first, Admitted)
        return first

    def done(self, name: str) -> RequestDone:
        """How a request ended."""
        last = self.outputs[name][-1]
        assert isinstance(last, RequestDone)
        return last
