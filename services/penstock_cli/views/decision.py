"""A routing decision with every term of every candidate, and what then happened."""

from collections.abc import Callable, Mapping

from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from penstock.routing.v1.decision_pb2 import Candidate, DecisionRecord, OutcomeRecord
from penstock.routing.v1.routing_service_pb2 import ExplainDecisionResponse
from penstock_cli.views.amounts import duration

_TERMS = (
    "network", "backlog", "prefill", "pending", "lateness", "externality", "replication", "tpot",
    "kv_pressure", "adapter_load",
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


def _candidates(decision: DecisionRecord) -> RenderableType:
    """Workers below one another; what says nothing of any of them has no column but a word below."""
    ordered = sorted(decision.candidates, key=lambda c: _rank(c, decision))
    columns = {name: [show(c) for c in ordered] for name, show in _COLUMNS.items()}
    told = {name: cells for name, cells in columns.items() if set(cells) - {"", "0"}}
    silent = [name for name in _COLUMNS if name not in told and name in _SUMMANDS]
    caption = "times add up to total; the least total wins"
    if silent:
        caption += f"; nothing of {', '.join(silent)}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("worker", no_wrap=True)
    for name, cells in told.items():
        justify: JustifyMethod = "left" if name in _WORDS else "right"
        # On a narrow terminal headings are folded, figures never.
        table.add_column(name, justify=justify, min_width=max(map(len, cells)), overflow="fold")
    for row, candidate in enumerate(ordered):
        chosen = candidate.worker_id == decision.chosen_worker_id
        mark = ("-> " if chosen else "   ") + escape(candidate.worker_id)
        cells = [cells[row] for cells in told.values()]
        table.add_row(mark, *cells, style="bold green" if chosen else None)
    return Group(table, Text(caption + "\n", "dim italic"))


def _rank(candidate: Candidate, decision: DecisionRecord) -> tuple[bool, bool, float]:
    chosen = candidate.worker_id == decision.chosen_worker_id
    return (not chosen, bool(candidate.excluded_because), candidate.total_s)


def _state(candidate: Candidate) -> str:
    """Said only of workers whose picture is not up to date."""
    state = candidate.sync_state.removeprefix("SYNC_STATE_").lower()
    return "" if state == "live" else escape(state)


def _trusted(candidate: Candidate) -> str:
    """Said only where less is believed than matched."""
    believed = f"{candidate.trusted_tokens:.0f}"
    return "" if believed == str(candidate.matched_tokens) else believed


def _seconds(term: str) -> Callable[[Candidate], str]:
    def show(candidate: Candidate) -> str:
        seconds: float = getattr(candidate, f"{term}_s")
        return duration(seconds) if seconds else "0"

    return show


_SUMMANDS = {name.replace("_", " "): _seconds(name) for name in _TERMS}
_COLUMNS: Mapping[str, Callable[[Candidate], str]] = {
    "state": _state,
    "cached": lambda c: str(c.matched_tokens),
    "trusted": _trusted,
    "compute": lambda c: f"{c.uncached_tokens:.0f}",
    **_SUMMANDS,
    "total": _seconds("total"),
    "excluded because": lambda c: escape(c.excluded_because),
}
_WORDS = ("state", "excluded because")


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
