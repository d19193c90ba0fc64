"""Decides logged decisions anew: the same bits under the same policy, the difference under another.

A log is what ``PENSTOCK_ROUTER_DECISION_LOG`` names: JSON lines of decisions and their outcomes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.routing.v1 import decision_pb2
from penstock_router.decisions.log import read_decisions
from penstock_router.decisions.wire import inputs_of
from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import explain
from penstock_router.policy.facts import Candidate, Explanation

Change = Callable[[CostParams], CostParams]


@dataclass(frozen=True, slots=True)
class Replayed:
    """One logged decision and what it is when it is made again.

    Attributes:
        is_same: every bit of choice, terms, reason, margin and counterfactual agrees.
        loss_s: by the policy it is decided with, what the logged choice costs more.
    """

    decision_id: str
    request_id: str
    logged_worker_id: str
    worker_id: str
    is_same: bool
    loss_s: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether the request would go elsewhere."""
        return self.worker_id != self.logged_worker_id


def replay_log(path: Path, change: Change | None = None) -> Iterator[Replayed]:
    """Every decision of a log, in its order; ``change`` alters the policy's parameters first.

    Raises:
        InvalidRequest: a line is no record, or holds no inputs; says which.
        OSError: the log cannot be read.
    """
    for entry in read_decisions(path):
        if entry.HasField("decision"):
            yield replay_record(entry.decision, change)


def replay_record(record: decision_pb2.DecisionRecord, change: Change | None = None) -> Replayed:
    """One decision, made again. Raises InvalidRequest if its inputs are missing."""
    inputs = inputs_of(record)
    params = change(inputs.params) if change else inputs.params
    why = explain(inputs.views, inputs.request, inputs.now, inputs.seed, params)
    chosen = why.decision.chosen
    logged = next((c for c in why.candidates if c.worker_id == record.chosen_worker_id), None)
    loss_s = logged.total_s - chosen.total_s if logged and chosen else 0.0
    return Replayed(
        record.decision_id,
        record.request_id,
        record.chosen_worker_id,
        chosen.worker_id if chosen else "",
        _equal(why, record),
        loss_s,
    )


def _equal(why: Explanation, record: decision_pb2.DecisionRecord) -> bool:
    chosen = why.decision.chosen
    candidates = tuple(
        Candidate(**{name: getattr(c, name) for name in Candidate._fields})
        for c in record.candidates
    )
    return (
        candidates == why.candidates
        and record.chosen_worker_id == (chosen.worker_id if chosen else "")
        and record.reason == why.reason
        and record.margin_s == why.margin_s
        and record.counterfactual_worker_id == why.counterfactual_worker_id
        and record.counterfactual_loss_s == why.counterfactual_loss_s
    )
