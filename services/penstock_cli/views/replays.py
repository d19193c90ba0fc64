"""Logged decisions beside what they are when they are made again."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from penstock_cli.views.amounts import duration
from penstock_router.decisions.replay import Replayed

_MOST_ROWS = 20


def replay_view(replayed: Sequence[Replayed], change: str) -> RenderableType:
    """Totals, and the moves that cost most; ``change`` says what was altered, if anything."""
    same = sum(each.is_same for each in replayed)
    moves = sorted((r for r in replayed if r.moves), key=lambda r: r.loss_s, reverse=True)
    policy = escape(change) or "under the logged policy"
    told = f"{len(replayed)} decisions {policy}: {same} the same bit for bit, {len(moves)} move"
    if not moves:
        return told
    table = Table(caption="loss: what the logged choice costs more by the replayed policy")
    for name in ("request", "logged", "now"):
        table.add_column(name)
    table.add_column("loss", justify="right")
    for each in moves[:_MOST_ROWS]:
        names = (each.request_id, each.logged_worker_id or "-", each.worker_id or "-")
        table.add_row(*map(escape, names), duration(each.loss_s))
    return Group(told, table)
