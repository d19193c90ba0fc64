"""Batches as their submitters see them: create, get, list, cancel, watch, results.

Knows neither wire types nor Celery. Every call is for one tenant; another tenant's batch does not
exist.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from opentelemetry import trace

from penstock_batch.planning.records import Answer
from penstock_batch.planning.validator import ENDPOINTS
from penstock_batch.queue.steward import Steward
from penstock_batch.running.answers import Job
from penstock_batch.running.finalizer import shard_answers
from penstock_batch.state.facts import CancelRequested, Created, Facts
from penstock_batch.state.fold import Batch, Counts, fold
from penstock_batch.stores.board import Board, Progress
from penstock_batch.stores.files import PURPOSE_INPUT, FileStore
from penstock_batch.stores.store import FactStore, checked_id, timed_id
from penstock_core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from penstock_core.telemetry import semconv as sc
from penstock_core.telemetry.tracing import outgoing

logger = logging.getLogger(__name__)

DEFAULT_WINDOW_S = 24 * 3600
MAX_WINDOW_S = 14 * 24 * 3600
MAX_PAGE = 100
DEFAULT_PAGE = 20
_LOOK_S = 0.15
# The board may be lost, so the facts are looked at now and then whatever it says.
_LOOK_AT_FACTS_S = 2.0


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a submitter asks for. A window of 0 means 24 hours."""

    input_file_id: str
    endpoint: str
    window_s: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    client_request_id: str = ""


class Batches:
    """The application behind ``BatchService``."""

    def __init__(
        self,
        store: FactStore,
        files: FileStore,
        board: Board,
        steward: Steward,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._files = files
        self._board = board
        self._steward = steward
        self._clock = clock
        self._tracer = trace.get_tracer("penstock.batch")

    async def create(self, tenant: str, new: NewBatch) -> Batch:
        """Create a batch, or return the one that the same request id created before.

        Raises:
            InvalidRequest: a field is out of its limits.
            NotFound: the input file is not there.
            Conflict: the request id was used for something else.
        """
        _check(new)
        file = await self._files.describe(tenant, new.input_file_id)
        if file.purpose != PURPOSE_INPUT:
            raise InvalidRequest(
                f"{file.id} has purpose {file.purpose!r}, not {PURPOSE_INPUT!r}",
                field="input_file_id",
            )
        batch_id = timed_id("batch")
        if new.client_request_id:
            batch_id = await self._store.claim_request(tenant, new.client_request_id, batch_id)
        with self._tracer.start_as_current_span(sc.SPAN_SUBMIT, attributes={sc.BATCH_ID: batch_id}):
            created = Created(
                at=self._clock(),
                tenant=tenant,
                input_file_id=new.input_file_id,
                endpoint=new.endpoint,
                window_s=new.window_s or DEFAULT_WINDOW_S,
                metadata=dict(new.metadata),
                trace=dict(outgoing()),
            )
            await self._store.create(batch_id, created)
        facts = await self._store.load(batch_id)
        if facts.created is None or not _same(facts.created, created):
            raise Conflict("this client_request_id was used for another batch")
        await self._go_on(batch_id)
        return await self._view(batch_id, facts)

    async def get(self, tenant: str, batch_id: str) -> Batch:
        """A batch as it is now. Raises NotFound."""
        return await self._view(batch_id, await self._store.load_owned(batch_id, tenant))

    async def page(self, tenant: str, after: str, limit: int) -> tuple[list[Batch], bool]:
        """A page of a tenant's batches, newest first, and whether there are more.

        Raises:
            InvalidRequest: the limit is out of range.
        """
        if not 0 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must lie in [1, {MAX_PAGE}]", field="limit")
        if after:
            checked_id("batch", after)
        ids = [i for i in await self._store.batches_of(tenant) if not after or i < after]
        size = limit or DEFAULT_PAGE
        page = []
        for batch_id in ids[:size]:
            facts = await self._store.load(batch_id)
            if facts.created is not None:
                page.append(await self._view(batch_id, facts))
        return page, len(ids) > size

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Ask a batch to stop; asking twice is asking once.

        Raises:
            NotFound: there is no such batch.
            Conflict: it is over already, otherwise than by cancelling.
        """
        facts = await self._store.load_owned(batch_id, tenant)
        batch = await self._view(batch_id, facts)
        if facts.outcome is not None:
            if facts.cancel is not None:
                return batch
            raise Conflict(f"{batch_id} is {batch.status} and cannot be cancelled")
        await self._store.put(batch_id, CancelRequested(self._clock()))
        await self._go_on(batch_id)
        return await self.get(tenant, batch_id)

    async def watch(self, tenant: str, batch_id: str) -> AsyncGenerator[Batch, None]:
        """A batch now and at each change, until it is over. Raises NotFound."""
        facts = await self._store.load_owned(batch_id, tenant)
        last: Batch | None = None
        version, looked_at = None, self._now()
        while True:
            progress = await self._progress(batch_id)
            lost = not progress.version
            if progress.version != version or lost or self._now() - looked_at > _LOOK_AT_FACTS_S:
                facts = await self._store.load(batch_id)
                version, looked_at = progress.version, self._now()
            batch = self._merged(batch_id, facts, progress)
            if batch != last:
                yield batch
                last = batch
            if batch.status.final:
                return
            await asyncio.sleep(_LOOK_S)

    async def results(self, tenant: str, batch_id: str, skip: int) -> AsyncIterator[Answer]:
        """Results shard by shard as they are committed, each line once, after the first ``skip``.

        The order is that of the shards, so that a second call with ``skip`` continues the first.
        Lines that a stopped batch did not run come with its end. Raises NotFound.
        """
        shard, left = 0, skip
        async with aclosing(self.watch(tenant, batch_id)) as changes:
            async for _ in changes:
                facts = await self._store.load(batch_id)
                while facts.planned and shard < facts.planned.shards:
                    answers = await self._shard_results(batch_id, facts, shard)
                    if answers is None:
                        break
                    for answer in answers[left:]:
                        yield answer
                    left = max(0, left - len(answers))
                    shard += 1

    async def _shard_results(self, batch_id: str, facts: Facts, shard: int) -> list[Answer] | None:
        """A shard's results; None until they are final."""
        done = facts.shards.get(shard)
        if done is None or facts.planned is None or facts.created is None:
            return None
        if done.closed and facts.outcome is None:
            return None
        job = Job(batch_id, facts.created.endpoint, int(facts.created.at))
        ending = facts.outcome.ending if facts.outcome else None
        return await shard_answers(self._store, facts.planned, done, job, ending)

    async def _go_on(self, batch_id: str) -> None:
        """Enqueue what is next at once. What was asked for is a fact already, so this may fail."""
        try:
            await self._board.touch(batch_id)
            await self._steward.advance(batch_id)
        except Unavailable as error:
            logger.warning("batch %s waits for the reconciler: %s", batch_id, error)

    async def _view(self, batch_id: str, facts: Facts) -> Batch:
        return self._merged(batch_id, facts, await self._progress(batch_id))

    async def _progress(self, batch_id: str) -> Progress:
        try:
            return await self._board.progress(batch_id)
        except Unavailable:
            # Only the lines within running shards are missing then.
            return Progress()

    def _merged(self, batch_id: str, facts: Facts, progress: Progress) -> Batch:
        """Facts plus what running shards report."""
        batch = fold(batch_id, facts, self._clock())
        if batch is None:
            raise NotFound(f"there is no batch {batch_id!r}")
        if batch.status.final:
            return batch
        running = [done for k, done in progress.shards.items() if k not in facts.shards]
        completed = batch.counts.completed + sum(done[0] for done in running)
        failed = batch.counts.failed + sum(done[1] for done in running)
        return replace(batch, counts=Counts(batch.counts.total, completed, failed))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _check(new: NewBatch) -> None:
    if new.endpoint not in ENDPOINTS:
        raise InvalidRequest(f"endpoint must be one of {', '.join(ENDPOINTS)}", field="endpoint")
    if new.window_s > MAX_WINDOW_S:
        raise InvalidRequest(
            f"completion_window_s must be at most {MAX_WINDOW_S}", field="completion_window_s"
        )
    if len(new.client_request_id) > 256:
        raise InvalidRequest("client_request_id is too long", field="client_request_id")
    too_long = any(len(k) > 64 or len(v) > 512 for k, v in new.metadata.items())
    if len(new.metadata) > 16 or too_long:
        raise InvalidRequest(
            "metadata may hold 16 pairs, keys of 64 and values of 512 characters", field="metadata"
        )


def _same(stored: Created, asked: Created) -> bool:
    """Whether a stored batch is what is asked for, apart from when and in which trace."""
    return replace(stored, at=asked.at, trace=asked.trace) == asked
