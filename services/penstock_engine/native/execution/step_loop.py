"""The step thread: the only owner of scheduler, memory and model.

Owns the loop (commands in, a step, outputs out) and what happens when a step fails. Knows no
asyncio: what it has to tell goes to a callable, once a step, not once a token.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock_core.errors import EngineFailed, Overloaded, PenstockError
from penstock_engine.api import EngineOutput, EngineRequest, EngineState, KvEvent
from penstock_engine.native.execution.embedding import Compute, Embeddings
from penstock_engine.native.execution.stats import StepStats
from penstock_engine.native.scheduling.drafts import NO_DRAFTS
from penstock_engine.native.scheduling.plan import Drafting, StepPlan, StepResult
from penstock_engine.native.scheduling.request import Matcher
from penstock_engine.native.scheduling.scheduler import Scheduler

logger = logging.getLogger(__name__)

RunStep = Callable[[StepPlan], StepResult]


@dataclass(frozen=True, slots=True)
class Machine:
    """A loaded model: what runs steps, what guesses tokens for them, and what reads texts for vectors."""

    run: RunStep
    drafting: Drafting | None = None
    read: Compute | None = None


@dataclass(frozen=True, slots=True)
class Submit:
    """Take this request, which arrived at ``now``, with a matcher for each sample if constrained."""

    request: EngineRequest
    now: float
    matchers: Sequence[Matcher] = ()


@dataclass(frozen=True, slots=True)
class Abort:
    """End this request, or one of its samples."""

    request_id: str
    choice_index: int | None = None


Command = Submit | Abort


@dataclass(frozen=True, slots=True)
class Report:
    """What happened since the last one: outputs and refusals by request, cache changes.

    ``ended`` says why nothing more will come, if so.
    """

    outputs: Sequence[tuple[str, EngineOutput | PenstockError]] = ()
    events: Sequence[KvEvent] = ()
    ended: EngineFailed | None = None


class StepLoop:
    """Runs steps while there is work and sleeps on a condition while there is none."""

    def __init__(
        self,
        scheduler: Scheduler,
        tell: Callable[[Report], None],
        max_commands: int,
        embeddings: Embeddings | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._tell = tell
        self._max_commands = max_commands
        self._embeddings = embeddings
        self._stats = StepStats()
        self._busy_s = 0.0
        self._wake = threading.Condition()
        self._commands: deque[Command] = deque()
        self._closing = False
        self._refused: list[tuple[str, EngineOutput | PenstockError]] = []
        self._state = EngineState()

    # Called from other threads.

    @property
    def state(self) -> EngineState:
        """As of the end of the last step, or the last commands."""
        return self._state

    def submit(self, command: Submit) -> None:
        """Queue a request. Raises Overloaded if too many commands wait already."""
        with self._wake:
            if len(self._commands) >= self._max_commands:
                raise Overloaded(f"{len(self._commands)} commands wait for the step thread")
            self._commands.append(command)
            self._wake.notify()

    def abort(self, command: Abort) -> None:
        """Queue the end of a request; never refused, since each request brings few of them."""
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def wake(self) -> None:
        """Look for work again: there are texts to embed."""
        with self._wake:
            self._wake.notify()

    def close(self) -> None:
        """Make ``run`` return after the step at hand."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    # The thread.

    def run(self, load: Callable[[], Machine], ready: Callable[[Exception | None], None]) -> None:
        """Load the model, say whether that worked, then serve until closed or failed."""
        try:
            machine = load()
        except Exception as error:  # noqa: BLE001 - whatever it is, the starter must hear of it
            ready(error)
            return
        ready(None)
        ended = EngineFailed("the engine was closed")
        try:
            while self._turn(machine):
                pass
        except Exception as error:
            logger.exception("engine step failed")
            self._state = EngineState(failed=True)
            ended = EngineFailed(f"the engine failed: {error!r}")
        self._tell(Report(ended=ended))

    def _turn(self, machine: Machine) -> bool:
        """Take commands and run a step. False once closed."""
        commands = self._await_commands()
        if commands is None:
            return False
        for command in commands:
            self._obey(command)
        drafting, began = machine.drafting, time.perf_counter()
        drafts = drafting.propose(self._scheduler.decoding()) if drafting else NO_DRAFTS
        plan = self._scheduler.plan(time.monotonic(), drafts)
        if self._refused or self._scheduler.has_outputs or plan is None:
            self._publish()  # before the step, which takes a while
        if plan is not None:
            result = machine.run(plan)
            self._stats.note(plan, result)
            # What is divided among requests is the turn's time: drafts and the plan were theirs too.
            turn_s = time.perf_counter() - began
            self._busy_s += turn_s
            self._scheduler.apply(plan, StepResult(result.drawn, turn_s), time.monotonic())
            self._publish()
            if drafting is not None:
                drafting.note(plan, result, time.perf_counter() - began)
        if self._embeddings and machine.read and self._embeddings.has_work:
            self._embeddings.step(machine.read, beside=plan is not None)
            self._publish()
        return True

    @property
    def _has_work(self) -> bool:
        embeds = self._embeddings is not None and self._embeddings.has_work
        return self._scheduler.has_work or embeds

    def _await_commands(self) -> list[Command] | None:
        with self._wake:
            while not (self._closing or self._commands or self._has_work):
                self._wake.wait()
            if self._closing:
                return None
            commands = list(self._commands)
            self._commands.clear()
            return commands

    def _obey(self, command: Command) -> None:
        if isinstance(command, Abort):
            self._scheduler.abort(command.request_id, command.choice_index, time.monotonic())
            return
        try:
            self._scheduler.submit(command.request, command.now, command.matchers)
        except PenstockError as error:
            self._refused.append((command.request.request_id, error))

    def _publish(self) -> None:
        scheduler, stats = self._scheduler, self._stats
        counts = scheduler.counts()
        to_embed = self._embeddings.queued_tokens if self._embeddings else 0
        self._state = EngineState(
            running=counts.running,
            waiting=counts.waiting,
            queued_prefill_tokens=counts.queued_prefill_tokens + to_embed,
            queued_batch_tokens=counts.queued_batch_tokens,
            context_tokens=counts.context_tokens,
            used_blocks=scheduler.memory.used_pages,
            cached_blocks=scheduler.memory.idle_pages,
            step_s=stats.step_s,
            tokens_per_step=stats.tokens_per_step,
            prefill_tokens_per_s=stats.prefill_tokens_per_s,
            preemptions=scheduler.preemptions,
            busy_s=self._busy_s + (self._embeddings.busy_s if self._embeddings else 0.0),
        )
        outputs = [*self._refused, *scheduler.take_outputs()]
        events = scheduler.memory.take_events()
        self._refused.clear()
        if outputs or events:
            self._tell(Report(outputs, events))
