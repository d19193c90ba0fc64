"""Workers among which several decisions are made at one moment, with what these have in common.

A queue decides for many requests among the same workers. What depends on the workers alone is
worked out once here: who can be chosen, the totals of the scene, who has least to do. Work that is
planned on a worker changes that worker's view and only what follows from it.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from penstock_router.policy.cost import CostParams, Totals, backlog_s, totals
from penstock_router.policy.facts import WorkerView

_NOBODY: frozenset[str] = frozenset()


class Panel(Sequence[WorkerView]):
    """Workers under one set of parameters; a sequence of their views, planned work included.

    Their ids differ.

    Attributes:
        params: with which backlogs are weighed.
        open: those that can be chosen, in their order; not to be changed.
    """

    def __init__(
        self, views: Sequence[WorkerView], params: CostParams, shut: frozenset[str] = _NOBODY
    ) -> None:
        self.params = params
        self._views = list(views)
        if shut:
            self.open = [v for v in views if not v.excluded_because and v.worker_id not in shut]
        else:
            self.open = [v for v in views if not v.excluded_because]
        # Places among the open ones; what is planned, and for whom.
        self._places: dict[str, int] | None = None
        self._plans: dict[str, tuple[float, int]] = {}
        self._totals: Totals | None = None
        # Backlogs, least first, each with its place among the open ones.
        self._backlogs: list[tuple[float, int]] = []

    def __len__(self) -> int:
        """All workers, open or not."""
        return len(self._views)

    @overload
    def __getitem__(self, index: int) -> WorkerView: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[WorkerView]: ...
    def __getitem__(self, index: int | slice) -> WorkerView | Sequence[WorkerView]:
        """A view, or some."""
        return list(self)[index]

    def __iter__(self) -> Iterator[WorkerView]:
        """All views."""
        for view in self._views:
            plan = self._plans.get(view.worker_id)
            yield view if plan is None else _with(view, plan)

    @property
    def places(self) -> Mapping[str, int]:
        """Where each of the open ones stands among them."""
        if self._places is None:
            self._places = {view.worker_id: place for place, view in enumerate(self.open)}
        return self._places

    @property
    def totals(self) -> Totals:
        """The totals of those that can be chosen, who are not none."""
        if self._totals is None:
            self._totals = totals(self.open)
        return self._totals

    def least_busy(self, count: int) -> list[int]:
        """Places among the open of those with the least backlog, least first."""
        return [place for _, place in self._ranked()[:count]]

    def no_busier(self, limit_s: float) -> list[tuple[float, int]]:
        """Backlogs of at most so many seconds, least first, each with its place among the open."""
        ranked = self._ranked()
        return ranked[: bisect_right(ranked, (limit_s, len(ranked)))]

    @property
    def least_backlog_s(self) -> float:
        """The least backlog of those that can be chosen; 0 if nobody can."""
        ranked = self._ranked()
        return ranked[0][0] if ranked else 0.0

    def view(self, worker_id: str) -> WorkerView:
        """The view of a worker among the open ones."""
        return self.open[self.places[worker_id]]

    def plan(self, worker_id: str, seconds: float, requests: int) -> None:
        """So much work waits for a worker, of so many requests, in place of what was planned."""
        plan = self._plans[worker_id] = (seconds, requests)
        place = self.places.get(worker_id)
        if place is not None:
            view = self.open[place]
            self._take(place, view, _with(view, plan))

    def _ranked(self) -> list[tuple[float, int]]:
        if not self._backlogs:
            p = self.params
            self._backlogs = [(backlog_s(w, p), place) for place, w in enumerate(self.open)]
            self._backlogs.sort()
        return self._backlogs

    def _take(self, place: int, before: WorkerView, after: WorkerView) -> None:
        self.open[place] = after
        if self._totals is not None:
            more = after.planned - before.planned
            self._totals = self._totals._replace(waiting=self._totals.waiting + more)
        if self._backlogs:
            at = bisect_left(self._backlogs, (backlog_s(before, self.params), place))
            del self._backlogs[at]
            insort(self._backlogs, (backlog_s(after, self.params), place))


def _with(view: WorkerView, plan: tuple[float, int]) -> WorkerView:
    return view._replace(planned_s=plan[0], planned=plan[1])
