"""What ``decide`` was called with, on the wire and back, without the loss of a bit."""

from dataclasses import asdict, fields

from penstock.routing.v1 import decision_pb2
from penstock_core.errors import InvalidRequest
from penstock_router.cost import CostParams
from penstock_router.decisions import Inputs
from penstock_router.facts import NO_MATCH, Match, RoutingRequest, WorkerView

_VIEW_FIELDS = WorkerView._fields
_PARAMETERS = tuple(f.name for f in fields(CostParams))


def inputs_message(inputs: Inputs) -> decision_pb2.DecisionInputs:
    """The wire form."""
    request = inputs.request
    return decision_pb2.DecisionInputs(
        now_s=inputs.now,
        parameters=asdict(inputs.params),
        workers=[_worker(v, request.matches.get(v.worker_id, NO_MATCH)) for v in inputs.views],
        divergent_hash=None if request.divergent is None else request.divergent & (2**64 - 1),
        max_tokens=request.max_tokens,
        excluded_worker_ids=sorted(request.excluded),
        replica_worker_ids=sorted(request.replicas),
    )


def inputs_of(record: decision_pb2.DecisionRecord) -> Inputs:
    """The plain form. Raises InvalidRequest if it is incomplete or of an unknown policy."""
    message = record.inputs
    unknown = set(message.parameters) - set(_PARAMETERS)
    if not message.parameters or unknown:
        what = f"unknown parameters {sorted(unknown)}" if unknown else "no inputs"
        raise InvalidRequest(f"decision {record.decision_id!r} has {what}", field="replay")
    matches = {w.worker_id: _match(w) for w in message.workers}
    divergent = message.divergent_hash if message.HasField("divergent_hash") else None
    return Inputs(
        now=message.now_s,
        params=CostParams(**message.parameters),
        views=tuple(
            WorkerView(**{name: getattr(w, name) for name in _VIEW_FIELDS}) for w in message.workers
        ),
        request=RoutingRequest(
            request_id=record.request_id,
            model=record.model,
            prompt_tokens=record.prompt_tokens,
            num_blocks=record.num_blocks,
            matches={name: m for name, m in matches.items() if m != NO_MATCH},
            divergent=divergent,
            max_tokens=message.max_tokens,
            excluded=frozenset(message.excluded_worker_ids),
            replicas=frozenset(message.replica_worker_ids),
        ),
        seed=record.seed,
    )


def _worker(view: WorkerView, match: Match) -> decision_pb2.WorkerInputs:
    values = {name: getattr(view, name) for name in _VIEW_FIELDS}
    return decision_pb2.WorkerInputs(
        **values,
        matched_tokens=match.matched_tokens,
        pending_tokens=match.pending_tokens,
        eta_s=match.eta,
        pending_request_ids=sorted(match.pending_requests),
    )


def _match(worker: decision_pb2.WorkerInputs) -> Match:
    return Match(
        worker.matched_tokens,
        worker.pending_tokens,
        worker.eta_s,
        frozenset(worker.pending_request_ids),
    )
