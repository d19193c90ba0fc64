"""Decisions and outcomes on the wire; what ``decide`` was called with also back, to the last bit."""

from dataclasses import asdict, fields

from penstock.routing.v1 import decision_pb2
from penstock_core.blocks import unpack_hashes
from penstock_core.errors import InvalidRequest
from penstock_router.decisions.book import DecisionRecord, Inputs, Outcome
from penstock_router.policy.cost import CostParams
from penstock_router.policy.facts import NO_MATCH, Match, RoutingRequest, WorkerView

_VIEW_FIELDS = WorkerView._fields
_PARAMETERS = tuple(f.name for f in fields(CostParams))
# What policies did before these could be said, so that logs of theirs are decided as they were.
_EARLIER = {"pooled": 1.0, "tie_ttft_share": 0.0}


def decision_message(record: DecisionRecord) -> decision_pb2.DecisionRecord:
    """The wire form of a decision."""
    inputs, why = record.inputs, record.explain()
    return decision_pb2.DecisionRecord(
        decision_id=record.decision_id,
        request_id=record.request_id,
        attempt=record.attempt,
        unix_time_s=record.unix_time_s,
        model=record.model,
        policy_digest=record.policy_digest,
        seed=inputs.seed,
        prompt_tokens=inputs.request.prompt_tokens,
        num_blocks=inputs.request.num_blocks,
        candidates=[decision_pb2.Candidate(**c._asdict()) for c in why.candidates],
        chosen_worker_id=record.worker_id,
        reason=why.reason,
        margin_s=why.margin_s,
        counterfactual_worker_id=why.counterfactual_worker_id,
        counterfactual_loss_s=why.counterfactual_loss_s,
        decision_us=record.decision_us,
        trace_id=record.trace_id,
        inputs=inputs_message(inputs),
        queued_s=record.queued_s,
        shadow_worker_id=record.shadow_worker_id,
        shadow_policy_digest=record.shadow_digest,
        prefix_hashes=unpack_hashes(record.prefix.hashes),
        prefix_hash_tokens=record.prefix.step_tokens,
    )


def outcome_message(outcome: Outcome) -> decision_pb2.OutcomeRecord:
    """The wire form of an outcome."""
    return decision_pb2.OutcomeRecord(
        **{k: v for k, v in outcome._asdict().items() if k != "tenant"}
    )


def inputs_message(inputs: Inputs) -> decision_pb2.DecisionInputs:
    """The wire form."""
    request = inputs.request
    return decision_pb2.DecisionInputs(
        now_s=inputs.now,
        parameters=asdict(inputs.params),
        workers=[_worker(view, request) for view in inputs.views],
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
        params=CostParams(**(_EARLIER | dict(message.parameters))),
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
            adapter_loads={
                w.worker_id: w.adapter_load_s for w in message.workers if w.adapter_load_s
            },
        ),
        seed=record.seed,
    )


def _worker(view: WorkerView, request: RoutingRequest) -> decision_pb2.WorkerInputs:
    match = request.matches.get(view.worker_id, NO_MATCH)
    values = {name: getattr(view, name) for name in _VIEW_FIELDS}
    return decision_pb2.WorkerInputs(
        **values,
        matched_tokens=match.matched_tokens,
        pending_tokens=match.pending_tokens,
        eta_s=match.eta,
        pending_request_ids=sorted(match.pending_requests),
        adapter_load_s=request.adapter_loads.get(view.worker_id, 0.0),
    )


def _match(worker: decision_pb2.WorkerInputs) -> Match:
    return Match(
        worker.matched_tokens,
        worker.pending_tokens,
        worker.eta_s,
        frozenset(worker.pending_request_ids),
    )
