"""Who is there: finds workers in the registry, follows each, and knows which models they serve."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc

from penstock_core.errors import ModelNotFound, NoWorker, Unavailable
from penstock_core.ids import new_id
from penstock_core.registry import Registry
from penstock_core.requests.model_names import SEPARATOR, Catalogue, Named, Served
from penstock_core.rpc.channels import channel
from penstock_core.security.tls import PLAIN, Tls
from penstock_core.telemetry.tracing import Metadata
from penstock_router.fleet.changes import Changes
from penstock_router.fleet.follower import Follower, Subscription
from penstock_router.fleet.sync import SyncState
from penstock_router.fleet.tracked import Picture, TrackedWorker
from penstock_router.frames import WorkerFacts
from penstock_router.relay.line import Line
from penstock_router.texts import TextLibrary

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_REMEMBER_S = 600.0
RETRY_AFTER_S = 1.0
_NOT_MET = {SyncState.COLD, SyncState.SYNCING}
_GONE = (SyncState.COLD, SyncState.STALE, SyncState.DEAD)


@dataclass(frozen=True, slots=True)
class WayIn:
    """How workers are called: over which TLS, and with which credentials on their own service.

    ``relays`` tells whether the streams of a worker share one call.
    """

    tls: Tls = PLAIN
    credentials: Metadata = ()
    relays: bool = True


@dataclass(frozen=True, slots=True)
class Link:
    """A worker with the connection to it."""

    worker: TrackedWorker
    channel: grpc.aio.Channel
    line: Line
    task: asyncio.Task[None]

    async def close(self) -> None:
        """Let go of the connection."""
        await self.line.close()
        await self.channel.close()


class Fleet:
    """All workers that the registry names."""

    def __init__(
        self,
        registry: Registry,
        picture: Picture,
        texts: TextLibrary,
        changes: Changes,
        way_in: WayIn,
    ) -> None:
        self._registry = registry
        self._way_in = way_in
        self._picture = picture
        self._texts = texts
        self._links: dict[str, Link] = {}
        # When each model was last served, so that "gone" can be told from "never heard of".
        self._known: dict[str, float] = {}
        self._catalogue: tuple[list[WorkerFacts], Catalogue] = ([], Catalogue(()))
        self._registry_answers = True
        self._has_polled = False
        self._gone_divergences = 0
        self._subscriber_id = new_id("router")
        self.changes = changes

    async def run(self) -> None:
        """Follow the registry until cancelled; then let go of every worker."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._poll(group)
                    if not self._has_polled:
                        self._has_polled = True
                        self.changes.notify()
                    self._look(group)
                    await asyncio.sleep(_POLL_S)
        finally:
            for link in self._links.values():
                await link.close()
            self._links.clear()

    async def look_round(self, within_s: float) -> None:
        """Wait until everybody in the registry is known or known to be dead, no longer than ``within_s``.

        A router that answers before refuses what its workers would take.
        """
        try:
            async with asyncio.timeout(within_s):
                while not self._has_polled or self._states() & _NOT_MET:
                    await self.changes.wait(within_s)
        except TimeoutError:
            logger.warning(
                "not all workers answered within %.0f s: serving with the others", within_s
            )

    def _states(self) -> set[SyncState]:
        now = self._picture.clock()
        return {link.worker.sync.state(now) for link in self._links.values()}

    def workers(self) -> list[TrackedWorker]:
        """Everybody, by id."""
        found = (link.worker for link in self._links.values())
        return sorted(found, key=lambda w: (w.worker_id, w.endpoint))

    def channel(self, worker: TrackedWorker) -> grpc.aio.Channel:
        """The connection to a worker. Raises NoWorker if it has just gone."""
        return self._link(worker).channel

    def line(self, worker: TrackedWorker) -> Line:
        """What carries generations to a worker. Raises NoWorker if it has just gone."""
        return self._link(worker).line

    def serving(self, model: str) -> list[TrackedWorker]:
        """Who serves a model, in whatever state; one for each worker id.

        Raises:
            ModelNotFound: nobody does, nor did lately; the message names what there is.
            NoWorker: those who did are gone, or no worker has been met yet.
        """
        # A worker that came back on another port leaves a dead namesake: the living one counts.
        now = self._picture.clock()
        by_life = sorted(
            self.workers(), key=lambda w: w.sync.state(now) not in (SyncState.DEAD, SyncState.COLD)
        )
        found = {w.worker_id: w for w in by_life if w.facts and model in w.facts.models}
        if found:
            return list(found.values())
        names = sorted(self.models())
        if model in self._known or not names:
            raise NoWorker(f"no worker serves {model!r} now", retry_after_s=RETRY_AFTER_S)
        raise ModelNotFound(f"no model {model!r}; there are {', '.join(names)}")

    def named(self, model: str, adapter: str = "") -> Named:
        """What a request means by these names; see ``Catalogue.read``."""
        facts = [worker.facts for worker in self.workers() if worker.facts is not None]
        if not adapter and any(model in known.models for known in facts):
            return Named(model)
        # Facts last as long as a worker's epoch, so equal ones are mostly the same objects.
        if facts != self._catalogue[0]:
            served = [Served(known.models, known.model_revision, known.adapters) for known in facts]
            self._catalogue = facts, Catalogue(served)
        return self._catalogue[1].read(model, adapter)

    def any_open(self, workers: Iterable[TrackedWorker]) -> bool:
        """Whether one of these takes requests now."""
        now = self._picture.clock()
        return any(not worker.why_not(now) for worker in workers)

    def models(self) -> Mapping[str, WorkerFacts]:
        """Every model by name, with a worker that serves it."""
        named: dict[str, WorkerFacts] = {}
        for worker in self.workers():
            if worker.facts is not None:
                named |= dict.fromkeys(worker.facts.models, worker.facts)
        return named

    def states(self) -> Mapping[str, int]:
        """How many workers are in which state."""
        now = self._picture.clock()
        return Counter(w.sync.state(now).value for w in self.workers())

    def calibration(self) -> Mapping[str, tuple[float, float]]:
        """Each worker's smoothed TTFT error in seconds and its trust factor."""
        known = (w for w in self.workers() if w.worker_id)
        return {w.worker_id: (w.load.ttft_error.value, w.load.trust_factor) for w in known}

    def divergences(self) -> int:
        """Times that the index was found to be wrong, over all workers there were."""
        return self._gone_divergences + sum(w.sync.divergences for w in self.workers())

    def _link(self, worker: TrackedWorker) -> Link:
        link = self._links.get(worker.endpoint)
        if link is None or link.worker is not worker:
            raise NoWorker(f"worker {worker.worker_id} is gone", retry_after_s=RETRY_AFTER_S)
        return link

    async def _poll(self, group: asyncio.TaskGroup) -> None:
        try:
            named = {entry.endpoint for entry in await self._registry.workers()}
        except Unavailable as error:
            if self._registry_answers:
                logger.warning("going on with the workers that are known: %s", error)
            self._registry_answers = False
            return
        self._registry_answers = True
        for endpoint in named - self._links.keys():
            worker = TrackedWorker(endpoint, self._picture)
            to = channel(endpoint, self._way_in.tls)
            subscription = Subscription(to, self._subscriber_id, self._way_in.credentials)
            follower = Follower(worker, subscription, self._picture, self.changes)
            line = Line(to, self._way_in.credentials, relays=self._way_in.relays)
            self._links[endpoint] = Link(worker, to, line, group.create_task(follower.run()))
            logger.info("following the worker at %s", endpoint)
        for endpoint in self._links.keys() - named:
            # Out of the registry is no proof of death; a broken stream as well is.
            if self._links[endpoint].worker.sync.state(self._picture.clock()) in _GONE:
                await self._let_go(endpoint)

    async def _let_go(self, endpoint: str) -> None:
        link = self._links.pop(endpoint)
        link.task.cancel()
        await asyncio.wait([link.task])
        await link.close()
        self._gone_divergences += link.worker.sync.divergences
        if link.worker.worker_id not in {w.worker_id for w in self.workers()}:
            self._picture.metrics.gone(link.worker.worker_id)
        logger.info("the worker at %s is gone", endpoint)

    def _look(self, group: asyncio.TaskGroup) -> None:
        """Remember models, and load tokenizers before the first request needs them."""
        now = self._picture.clock()
        used: set[tuple[str, str]] = set()
        for worker in self.workers():
            facts = worker.facts
            if facts is None:
                continue
            used.add((facts.tokenizer_source, facts.tokenizer_digest))
            self._known |= dict.fromkeys(_names(facts), now)
            to = self._links[worker.endpoint].channel
            group.create_task(worker.distance.measure(to, _POLL_S))
            if not self._texts.has(facts):
                group.create_task(self._load(facts))
        self._texts.keep(used)
        self._known = {n: seen for n, seen in self._known.items() if now - seen < _REMEMBER_S}

    async def _load(self, facts: WorkerFacts) -> None:
        await self._texts.get(facts)


def _names(facts: WorkerFacts) -> list[str]:
    """Everything that a request may call what this worker serves."""
    pairs = [f"{model}{SEPARATOR}{name}" for model in facts.models for name in facts.adapters]
    return [*facts.models, *facts.adapters, *pairs]
