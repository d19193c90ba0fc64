"""A batch's state as a pure fold of its facts and the clock.

Whatever subset of the facts a reader sees, and whichever process wrote them, the result is a
legal state, and an ended batch never changes again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from penstock_batch.state.facts import NO_COSTS, NO_TOKENS, Costs, Ending, Facts, Problem, Tokens


class Status(StrEnum):
    """OpenAI's eight states."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether it stays so for ever."""
        return self.value in set(Ending)


# What may follow what as facts are added and time passes, over any number of steps.
_ENDS = frozenset(Status(ending.value) for ending in Ending)
_LATE = _ENDS | {Status.FINALIZING, Status.CANCELLING}
FOLLOWS: Mapping[Status, frozenset[Status]] = {
    Status.VALIDATING: _LATE | {Status.IN_PROGRESS},
    Status.IN_PROGRESS: _LATE,
    Status.FINALIZING: _ENDS | {Status.CANCELLING},
    Status.CANCELLING: _ENDS,
    **{status: frozenset() for status in _ENDS},
}


@dataclass(frozen=True, slots=True)
class Counts:
    """Lines by outcome."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Times:
    """Unix seconds at which each state was entered; None if it never was."""

    created: float
    expires: float
    in_progress: float | None = None
    finalizing: float | None = None
    cancelling: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as a reader sees it."""

    id: str
    status: Status
    endpoint: str
    input_file_id: str
    window_s: int
    counts: Counts
    times: Times
    output_file_id: str = ""
    error_file_id: str = ""
    problems: tuple[Problem, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    usage: Tokens = NO_TOKENS
    deduplicated: int = 0
    shards: int = 0
    shards_done: int = 0
    cost: Costs = NO_COSTS


def fold(batch_id: str, facts: Facts, now: float) -> Batch | None:
    """The state of a batch; None if it was never created."""
    created, planned, outcome = facts.created, facts.planned, facts.outcome
    if created is None:
        return None
    return Batch(
        id=batch_id,
        status=_status(facts, now),
        endpoint=created.endpoint,
        input_file_id=created.input_file_id,
        window_s=created.window_s,
        counts=_counts(facts),
        times=_times(facts, now),
        output_file_id=outcome.output_file_id if outcome else "",
        error_file_id=outcome.error_file_id if outcome else "",
        problems=outcome.problems if outcome else (),
        metadata=created.metadata,
        model=planned.model if planned else "",
        usage=sum((shard.usage for shard in facts.shards.values()), NO_TOKENS),
        deduplicated=planned.deduplicated if planned else 0,
        shards=planned.shards if planned else 0,
        shards_done=len(facts.shards),
        cost=sum((shard.cost for shard in facts.shards.values()), NO_COSTS),
    )


def ending_due(facts: Facts, now: float) -> Ending | None:
    """How a batch that is not over has to end now; None while it may go on.

    A cancel within the window comes first: whoever asked to stop is told that it stopped, even if
    nothing was left to do. Work that is all done counts as completed however late it is.
    """
    if facts.created is None or facts.outcome is not None:
        return None
    if facts.cancel is not None and facts.cancel.at < facts.created.expires:
        return Ending.CANCELLED
    stopped = any(shard.closed for shard in facts.shards.values())
    if facts.planned and not facts.missing_shards() and not stopped:
        return Ending.COMPLETED
    return Ending.EXPIRED if now >= facts.created.expires or stopped else None


def _status(facts: Facts, now: float) -> Status:
    if facts.outcome is not None:
        return Status(facts.outcome.ending.value)
    if facts.cancel is not None:
        return Status.CANCELLING
    if ending_due(facts, now) is not None:
        return Status.FINALIZING
    return Status.IN_PROGRESS if facts.planned else Status.VALIDATING


def _counts(facts: Facts) -> Counts:
    if (outcome := facts.outcome) is not None:
        # From the outcome alone: a planner that comes too late must not change an ended batch.
        return Counts(outcome.completed + outcome.failed, outcome.completed, outcome.failed)
    total = facts.planned.lines if facts.planned else 0
    completed = sum(shard.completed for shard in facts.shards.values())
    return Counts(total, completed, sum(shard.failed for shard in facts.shards.values()))


def _times(facts: Facts, now: float) -> Times:
    assert facts.created is not None
    finalizing = None
    if facts.planned and not facts.missing_shards():
        finalizing = max((s.at for s in facts.shards.values()), default=facts.planned.at)
    elif facts.cancel is None and ending_due(facts, now) is Ending.EXPIRED:
        finalizing = facts.created.expires
    return Times(
        created=facts.created.at,
        expires=facts.created.expires,
        in_progress=facts.planned.at if facts.planned else None,
        finalizing=finalizing,
        cancelling=facts.cancel.at if facts.cancel else None,
        ended=facts.outcome.at if facts.outcome else None,
    )
