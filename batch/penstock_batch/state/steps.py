"""What has to be done next for a batch, from its facts, the leases and the clock.

The one place that decides it: after every task, and again by the reconciler, which is how a batch
goes on after a loss of the queue or of every process. Pure; knows neither Celery nor Redis.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from penstock_batch.state.facts import Ending, Facts
from penstock_batch.state.fold import ending_due

PLAN = "plan"
FINALIZE = "finalize"
_SHARD = "shard-"

# Running shards get this long to store what they have once a batch is stopped.
STOP_GRACE_S = 10.0

# Urgency by time left, most urgent first: Redis' queue of level 0 is served before the others.
_URGENCY = ((900.0, 0), (3600.0, 3), (4 * 3600.0, 6))
LEAST_URGENT = 9
LEVELS = (*(level for _, level in _URGENCY), LEAST_URGENT)


@dataclass(frozen=True, slots=True)
class Step:
    """A unit of work on a batch: to plan it, to run one shard, to finalize it."""

    name: str
    shard: int | None = None


@dataclass(frozen=True, slots=True)
class Leases:
    """Steps that somebody holds, by name: True if running, False if waiting in the queue."""

    held: Mapping[str, bool]

    def __contains__(self, step: object) -> bool:
        """Whether a step is held at all."""
        return isinstance(step, Step) and step.name in self.held

    def running(self, step: Step) -> bool:
        """Whether a step is running."""
        return self.held.get(step.name, False)


def shard_step(shard: int) -> Step:
    """The step that runs one shard."""
    return Step(f"{_SHARD}{shard}", shard)


def open_steps(facts: Facts) -> list[Step]:
    """Every step that could be wanted now, the ones that may be held included."""
    if facts.created is None or facts.outcome is not None:
        return []
    if facts.planned is None:
        return [Step(PLAN), Step(FINALIZE)]
    return [*(shard_step(k) for k in facts.missing_shards()), Step(FINALIZE)]


def next_steps(facts: Facts, leases: Leases, now: float) -> list[Step]:
    """The steps to enqueue: wanted and held by nobody."""
    wanted = [step for step in open_steps(facts) if step not in leases]
    finalize = [step for step in wanted if step.name == FINALIZE]
    ending = ending_due(facts, now)
    if ending is None:
        return [step for step in wanted if step.name != FINALIZE]
    if ending is Ending.COMPLETED or now >= _patience(facts):
        return finalize
    busy = any(leases.running(step) for step in open_steps(facts) if step.name != FINALIZE)
    return [] if busy else finalize


def urgency(expires: float, now: float) -> int:
    """Queue level of a batch: the less time is left, the smaller."""
    left = expires - now
    return next((level for limit, level in _URGENCY if left < limit), LEAST_URGENT)


def _patience(facts: Facts) -> float:
    """Until when a stopped batch waits for its running steps."""
    assert facts.created is not None
    stopped = facts.created.expires
    if facts.cancel is not None:
        stopped = min(stopped, facts.cancel.at)
    return stopped + STOP_GRACE_S
