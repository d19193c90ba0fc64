"""When a worker takes a request: the rules of late binding. Pure."""

from penstock_router.admission.ticket import AdmissionParams, PriorityClass, Ticket
from penstock_router.policy.facts import Candidate, WorkerView


def may_go(ticket: Ticket, view: WorkerView, chosen: Candidate, params: AdmissionParams) -> bool:
    """Whether the chosen worker takes it now."""
    if not has_room(view, params):
        return False
    if ticket.priority is PriorityClass.BATCH:
        return _has_slack(view, params) and chosen.backlog_s <= params.ahead_s
    objective_s = params.slo_s[ticket.priority]
    return chosen.backlog_s <= params.ahead_s or chosen.ttft_s <= objective_s


def has_room(view: WorkerView, params: AdmissionParams) -> bool:
    """Whether its batch and its memory have room for one more."""
    if view.max_batch and view.running + view.waiting >= view.max_batch:
        return False
    full = view.capacity_blocks * params.full_share
    return not (view.capacity_blocks and view.running and view.used_blocks >= full)


def _has_slack(view: WorkerView, params: AdmissionParams) -> bool:
    """Whether what is left over of a worker is more than the others' reserve."""
    return not (
        view.planned
        or (view.max_batch and view.running >= params.batch_share * view.max_batch)
        or (view.used_blocks and view.used_blocks >= params.batch_share * view.capacity_blocks)
    )
