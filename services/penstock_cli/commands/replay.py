"""Deciding a decision log anew, for ``penstock simulate --replay``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from penstock_cli.execution import failures_told, output
from penstock_cli.views.documents import to_json
from penstock_cli.views.replays import replay_view
from penstock_router.decisions.replay import replay_log
from penstock_router.simulate import catalogue


def replay(log: Path, ablate: Sequence[str], *, as_json: bool) -> None:
    """Print which decisions come out the same, and which would move under a changed policy."""
    with failures_told():
        catalogue.check_terms(ablate)
        change = (lambda params: catalogue.without(params, ablate)) if ablate else None
        replayed = list(replay_log(log, change))
    if as_json:
        document = [asdict(each) | {"moves": each.moves} for each in replayed]
        output.out(to_json(document), highlight=False)
    else:
        output.print(replay_view(replayed, ablate))
