"""A routing decision with every term of every candidate, and what then happened."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from penstock.routing.v1.decision_pb2 import Candidate, DecisionRecord, OutcomeRecord
from penstock.routing.v1.routing_service_pb2 import ExplainDecisionResponse
from penstock_cli.views.amounts import duration

_TERMS = (
    "network", "backlog", "prefill", "pending", "lateness", "externality", "replication", "tpot",
    "kv_pressure", "total",
)  # fmt: skip


def decision_view(answer: ExplainDecisionResponse) -> RenderableType:
    """The whole story of one decision."""
    decision = answer.decision
    outcome = answer.outcome if answer.HasField("outcome") else None
    return Group(_heading(decision), _candidates(decision), _reasons(decision, outcome))


def _heading(decision: DecisionRecord) -> Text:
    text = Text.assemble(
        ("decision ", "dim"), (decision.decision_id, "bold"),
        (" for request ", "dim"), decision.request_id,
        (f", attempt {decision.attempt}, model {decision.model}, ", "dim"),
        (f"{decision.prompt_tokens} prompt tokens in {decision.num_blocks} full blocks, ", "dim"),
        (f"decided in {duration(decision.decision_us / 1e6)}", "dim"),
    )  # fmt: skip
    if decision.queued_s:
        text.append(f", after {duration(decision.queued_s)} in the router's queue", "dim")
    if decision.trace_id:
        text.append(f", trace {decision.trace_id}", "dim")
    return text


def _candidates(decision: DecisionRecord) -> Table:
    table = Table(caption="times add up to total; the least total wins")
    for name in ("worker", "state"):
        table.add_column(name)
    for name in ("cached", "trusted", "to compute", *(t.replace("_", " ") for t in _TERMS)):
        table.add_column(name, justify="right")
    table.add_column("excluded because")
    for candidate in decision.candidates:
        chosen = candidate.worker_id == decision.chosen_worker_id
        table.add_row(*_row(candidate, chosen=chosen), style="bold green" if chosen else None)
    return table


def _row(candidate: Candidate, *, chosen: bool) -> tuple[str, ...]:
    times = (getattr(candidate, f"{term}_s") for term in _TERMS)
    return (
        ("-> " if chosen else "   ") + escape(candidate.worker_id),
        escape(candidate.sync_state.removeprefix("SYNC_STATE_").lower()),
        str(candidate.matched_tokens),
        f"{candidate.trusted_tokens:.0f}",
        f"{candidate.uncached_tokens:.0f}",
        *(duration(seconds) for seconds in times),
        escape(candidate.excluded_because),
    )


def _reasons(decision: DecisionRecord, outcome: OutcomeRecord | None) -> Table:
    table = Table.grid(padding=(0, 2))
    chosen = decision.chosen_worker_id or "nobody"
    table.add_row("chosen", f"{escape(chosen)}, because {escape(decision.reason)}")
    table.add_row("margin", f"{duration(decision.margin_s)} better than the next")
    if decision.counterfactual_worker_id:
        table.add_row("without looking at caches", _counterfactual(decision))
    if decision.shadow_worker_id:
        agrees = decision.shadow_worker_id == decision.chosen_worker_id
        other = "the same" if agrees else escape(decision.shadow_worker_id)
        table.add_row("shadow policy", f"{other} ({decision.shadow_policy_digest})")
    if outcome is None:
        table.add_row("outcome", "not known yet: the request runs")
        return table
    table.add_row("cached tokens", _against(
        str(outcome.predicted_cached_tokens), str(outcome.actual_cached_tokens)))  # fmt: skip
    table.add_row("time to first token", _against(
        duration(outcome.predicted_ttft_s), duration(outcome.actual_ttft_s)))  # fmt: skip
    table.add_row("outcome", f"{outcome.status or 'OK'}, {outcome.output_tokens} tokens")
    return table


def _counterfactual(decision: DecisionRecord) -> str:
    other = decision.counterfactual_worker_id
    if other == decision.chosen_worker_id:
        return "the same worker"
    return f"{escape(other)}, at a cost of {duration(decision.counterfactual_loss_s)} more"


def _against(predicted: str, actual: str) -> str:
    return f"predicted {predicted}, actual {actual}"
