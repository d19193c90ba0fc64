"""Deciding a decision log anew, for ``penstock simulate --replay``."""

from dataclasses import asdict, dataclass
from pathlib import Path

from penstock_cli.execution import failures_told, output
from penstock_cli.views.documents import to_json
from penstock_cli.views.replays import replay_view
from penstock_core.errors import InvalidRequest
from penstock_router.decisions.replay import replay_log
from penstock_router.policy.cost import CostParams
from penstock_router.simulate import catalogue


@dataclass(frozen=True, slots=True)
class Change:
    """What a policy's parameters are altered by: ``cost`` sets some, ``ablate`` ends whole terms."""

    cost: str = ""
    ablate: tuple[str, ...] = ()

    def of(self, params: CostParams) -> CostParams:
        """The altered ones. Raises InvalidRequest for names that do not exist."""
        try:
            changed = params.with_changes(self.cost)
        except ValueError as error:
            raise InvalidRequest(str(error), field="cost") from error
        return catalogue.without(changed, self.ablate)

    def __str__(self) -> str:
        """For a heading; empty if nothing is altered."""
        without = f"without {', '.join(self.ablate)}" if self.ablate else ""
        return " and ".join(filter(None, (f"with {self.cost}" if self.cost else "", without)))


def replay(log: Path, change: Change, *, as_json: bool) -> None:
    """Print which decisions come out the same, and which would move under a changed policy."""
    with failures_told():
        change.of(CostParams())
        replayed = list(replay_log(log, change.of if str(change) else None))
    if as_json:
        document = [asdict(each) | {"moves": each.moves} for each in replayed]
        output.out(to_json(document), highlight=False)
    else:
        output.print(replay_view(replayed, str(change)))
