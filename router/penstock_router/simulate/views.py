"""The simulated workers as decisions see them, made anew only as far as they changed."""

from collections.abc import Sequence

from penstock_router.fleet.load import WorkerLoad
from penstock_router.policy.facts import WorkerView
from penstock_router.simulate.engine import EngineModel

_UTILISATION = WorkerView._fields.index("utilisation")


class Views:
    """One view for each worker at one moment."""

    def __init__(
        self, names: Sequence[str], models: Sequence[EngineModel], loads: Sequence[WorkerLoad]
    ) -> None:
        self._names = names
        self._models = models
        self._loads = loads
        self._at = -1.0
        self._views = [WorkerView(name, "simulated") for name in names]
        # Of these nothing is known any more, and of those it is not as soon as time has gone by.
        self._changed = set(range(len(loads)))
        self._busy: set[int] = set()

    def changed(self, worker: int) -> None:
        """Something happened there."""
        self._changed.add(worker)

    def at(self, now: float) -> list[WorkerView]:
        """All of them, in their order; not to be changed."""
        if now != self._at:
            self._at = now
            self._changed |= self._busy
            self._let_fade(now)
        for worker in self._changed:
            self._views[worker] = self._look(worker, now)
            if self._loads[worker].changes_by_itself:
                self._busy.add(worker)
            else:
                self._busy.discard(worker)
        self._changed.clear()
        return self._views

    def _let_fade(self, now: float) -> None:
        """Of a worker at rest only the utilisation changes."""
        views, loads, changed = self._views, self._loads, self._changed
        for worker, view in enumerate(views):
            if view.utilisation and worker not in changed:
                share = loads[worker].utilisation(now)
                fields = (*view[:_UTILISATION], share, *view[_UTILISATION + 1 :])
                views[worker] = tuple.__new__(WorkerView, fields)

    def _look(self, worker: int, now: float) -> WorkerView:
        load, model = self._loads[worker], self._models[worker]
        base_s, slope_s = load.prefill_line()
        return WorkerView(
            worker_id=self._names[worker],
            epoch="simulated",
            trust=load.trust_factor,
            backlog_tokens=load.left_tokens(now),
            running=load.running(),
            waiting=load.waiting(),
            base_s=base_s,
            slope_s=slope_s,
            pair_s=load.prefill.pair_s,
            utilisation=load.utilisation(now),
            output_tokens=load.output_tokens.value,
            max_batch=model.max_active,
            capacity_blocks=0,
            block_tokens=model.block_tokens,
        )
