"""Which workers a request may go to: the catalogue's places, in order, over the fleet as it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock.inference.v1 import generate_pb2
from penstock_core.errors import InvalidRequest, NotFound, NoWorker
from penstock_core.requests.model_names import Named
from penstock_router.catalog import Catalog, Entry, Place, in_order
from penstock_router.fleet.fleet import RETRY_AFTER_S, Fleet
from penstock_router.fleet.tracked import TrackedWorker
from penstock_router.frames import WorkerFacts

_NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Found:
    """Workers of one place, in whatever state, the name they serve the model under, its adapter."""

    model: str
    workers: list[TrackedWorker]
    adapter: str = ""


class Places:
    """Looks names up."""

    def __init__(self, catalog: Catalog, fleet: Fleet, clock: Callable[[], float]) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._clock = clock

    def leads_elsewhere(self, model: str) -> bool:
        """Whether a name may lead to several places."""
        return self._catalog.entry(model) is not None

    def read(self, model: str, adapter: str = "") -> Named:
        """What a request means by these names: the catalogue's as they are, others as workers serve them.

        Raises as ``Catalogue.read`` does.
        """
        if self.leads_elsewhere(model):
            return Named(model, adapter)
        return self._fleet.named(model, adapter)

    def of(self, request: generate_pb2.GenerateRequest, tried: frozenset[str] = _NOBODY) -> Found:
        """The first place of a request's model with room; without any, the first with a living worker.

        Workers that were tried are no reason for a place.

        Raises:
            ModelNotFound: nobody ever served the model, and the catalogue does not name it.
            NoWorker: nobody serves it now.
        """
        # What has begun goes on with the model that it began with.
        entry = None if request.resume.attempt else self._catalog.entry(request.model)
        if entry is None:
            return Found(request.model, self._fleet.serving(request.model))
        found = [
            place
            for place in (self._at(p) for p in in_order(entry, request.request_id))
            if place.workers
        ]
        if not found:
            raise NoWorker(f"no worker serves {request.model!r} now", retry_after_s=RETRY_AFTER_S)
        fresh = [(p, [w for w in p.workers if w.worker_id not in tried]) for p in found]
        with_room = (place for place, workers in fresh if self._have_room(workers, entry))
        living = (place for place, workers in fresh if self._fleet.any_open(workers))
        return next(with_room, None) or next(living, None) or found[0]

    def any(self, model: str) -> list[TrackedWorker]:
        """Workers that read and write as a name's first place does. Raises as ``of`` does."""
        return self.of(generate_pb2.GenerateRequest(model=model)).workers

    def models(self) -> Mapping[str, WorkerFacts]:
        """Every name that can be asked for, with a worker that serves it."""
        named = dict(self._fleet.models())
        for name in self._catalog.names:
            try:
                workers = self.any(name)
            except NoWorker:
                named.pop(name, None)
                continue
            facts = workers[0].facts
            if facts is not None:
                named[name] = facts
        return named

    def _at(self, place: Place) -> Found:
        try:
            named = self._fleet.named(place.model)
            workers = self._fleet.serving(named.model)
        except (NotFound, InvalidRequest, NoWorker):
            return Found(place.model, [])
        here = [w for w in workers if w.facts and _is_at(w.facts, place, named.adapter)]
        return Found(named.model, here, named.adapter)

    def _have_room(self, workers: list[TrackedWorker], entry: Entry) -> bool:
        now = self._clock()
        return any(not w.why_not(now) and w.load.waiting() < entry.max_waiting for w in workers)


def _is_at(facts: WorkerFacts, place: Place, adapter: str) -> bool:
    if adapter and adapter not in facts.adapters:
        return False
    wanted = ((place.revision, facts.model_revision), (place.pool, facts.pool))
    return all(not want or want == has for want, has in (*wanted, (place.zone, facts.zone)))
