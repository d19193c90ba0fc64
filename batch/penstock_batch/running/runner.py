"""Runs one shard: every line of it, side by side, then commits the answers as one fact.

Running a shard again, or twice at once, is harmless: answers are stored under a name of their own
and the fact is put-if-absent, so exactly one run counts and the other's object is deleted.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.context import Context

from penstock.common.v1 import usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_batch.metrics import BatchMetrics
from penstock_batch.planning.planner import Work
from penstock_batch.planning.records import Answer, dump_answers, load_work
from penstock_batch.running.answers import Answered, Embedded, Generated, Job, answered, failed
from penstock_batch.running.caller import LineCaller
from penstock_batch.state.facts import (
    NO_COSTS,
    NO_TOKENS,
    Costs,
    Created,
    Facts,
    Planned,
    ShardDone,
    Tokens,
)
from penstock_batch.stores.board import Board
from penstock_batch.stores.store import FactStore
from penstock_core.errors import PenstockError, PermissionDenied, Unauthenticated, Unavailable
from penstock_core.ids import new_id
from penstock_core.requests.validation import check_embed, check_request
from penstock_core.telemetry import semconv as sc
from penstock_core.telemetry.tracing import link_to
from penstock_openai.embeddings import EMBEDDINGS, embed_request, embedding_body
from penstock_openai.generations import Generation, generation_of
from penstock_openai.prompts import run_prompts
from penstock_openai.responses import Collector

logger = logging.getLogger(__name__)

_LOOK_S = 0.2


@dataclass(slots=True)
class _Run:
    """What one run of a shard has so far."""

    batch_id: str
    shard: int
    created: Created
    attempt: str
    answers: list[Answer] = field(default_factory=list)
    usage: Tokens = NO_TOKENS
    cost: Costs = NO_COSTS

    @property
    def job(self) -> Job:
        return Job(self.batch_id, self.created.endpoint, int(self.created.at))

    @property
    def failed(self) -> int:
        return sum(answer.is_error for answer in self.answers)

    @property
    def completed(self) -> int:
        return len(self.answers) - self.failed


class ShardRunner:
    """Runs shards with a shared caller, so that all of a process's shards feel the same pressure."""

    def __init__(
        self,
        store: FactStore,
        board: Board,
        caller: LineCaller,
        metrics: BatchMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._board = board
        self._caller = caller
        self._metrics = metrics
        self._clock = clock
        self._tracer = trace.get_tracer("penstock.batch")

    async def run(self, batch_id: str, shard: int) -> None:
        """Run a shard unless it is done.

        Raises:
            PenstockError: it cannot be run now (store away, our key refused); nothing was committed.
        """
        facts = await self._store.load(batch_id)
        created, planned = facts.created, facts.planned
        if created is None or planned is None or _is_over(facts, shard):
            return
        works = load_work(await self._store.objects.get(work_object(planned, shard)))
        run = _Run(batch_id, shard, created, new_id("att"))
        started = time.perf_counter()
        # A trace of its own: one trace for 50,000 lines would be no use to anybody.
        with self._tracer.start_as_current_span(
            sc.SPAN_SHARD,
            context=Context(),
            links=link_to(created.trace),
            attributes={
                sc.BATCH_ID: batch_id,
                sc.BATCH_SHARD: shard,
                sc.BATCH_LINES: sum(len(work.lines) for work in works),
            },
        ):
            closed = await self._answer_all(run, works)
            won = await self._commit(run, closed=closed)
        self._metrics.shard(time.perf_counter() - started, won=won)

    async def _answer_all(self, run: _Run, works: list[Work]) -> bool:
        """Answer every line; whether the batch was stopped before that."""
        try:
            async with asyncio.TaskGroup() as group:
                lines = [group.create_task(self._answer(run, work)) for work in works]
                watch = group.create_task(self._stop_on_request(run, lines))
                await asyncio.wait(lines)
                watch.cancel()
        except ExceptionGroup as errors:
            # All of them say the same: this shard cannot be run now.
            raise errors.exceptions[0] from errors
        return any(line.cancelled() for line in lines)

    async def _answer(self, run: _Run, work: Work) -> None:
        request_id = f"{run.attempt}.{work.line.number}"
        try:
            came = await self._run_line(run, request_id, work.line.body)
        except (Unauthenticated, PermissionDenied):
            raise
        except PenstockError as error:
            run.answers += [failed(run.job, line, error, request_id) for line in work.lines]
            return
        if (cost := came.cost()) is not None:  # once, however many lines share the answer
            run.cost += Costs(cost.amount, cost.currency, cost.prefill_s, cost.decode_s)
        for line in work.lines:
            run.answers.append(answered(run.job, line, came))
            run.usage += tokens_of(came.usage())

    async def _run_line(self, run: _Run, request_id: str, body: Mapping[str, object]) -> Answered:
        tenant = run.created.tenant
        if run.created.endpoint == EMBEDDINGS:
            wanted = embedding_body(body)
            request = embed_request(wanted)
            request.request_id = request_id
            check_embed(request)
            return Embedded(request_id, wanted, await self._caller.embed(tenant, request))
        generation = generation_of(run.created.endpoint, body)
        collector = await self._collect(tenant, request_id, generation)
        return Generated(request_id, generation, collector)

    async def _collect(self, tenant: str, request_id: str, generation: Generation) -> Collector:
        """What comes of a line's prompts."""
        collector = Collector(generation.form, generation.shape)

        async def run(index: int, request: generate_pb2.GenerateRequest) -> None:
            for event in await self._caller.generate(tenant, request):
                collector.add(index, event)

        for index, request in enumerate(generation.requests):
            check_request(request)
            request.request_id = request_id + (f"-{index}" if index else "")
        await run_prompts(generation.requests, run)
        return collector

    async def _stop_on_request(self, run: _Run, lines: list[asyncio.Task[None]]) -> None:
        """Report progress; end the lines once the batch is cancelled or its window closed."""
        reported = -1
        while True:
            try:
                if len(run.answers) != reported:
                    reported = len(run.answers)
                    await self._board.report(run.batch_id, run.shard, run.completed, run.failed)
                if await self._stopped(run):
                    break
            except Unavailable as error:
                logger.warning("shard %s/%d runs on unseen: %s", run.batch_id, run.shard, error)
            await asyncio.sleep(_LOOK_S)
        for line in lines:
            line.cancel()

    async def _stopped(self, run: _Run) -> bool:
        return self._clock() >= run.created.expires or await self._store.cancelled(run.batch_id)

    async def _commit(self, run: _Run, *, closed: bool) -> bool:
        """Store the answers and the fact; whether this run was the first."""
        data = dump_answers(run.answers)
        name = f"batches/{run.batch_id}/answers/{run.shard:05d}-{run.attempt}" if data else ""
        if name:
            await self._store.objects.put(name, data)
        fact = ShardDone(
            at=self._clock(),
            shard=run.shard,
            object_name=name,
            sha256=hashlib.sha256(data).hexdigest(),
            completed=run.completed,
            failed=run.failed,
            usage=run.usage,
            closed=closed,
            cost=run.cost,
        )
        won = await self._store.put(run.batch_id, fact)
        if won:
            self._metrics.lines(run.completed, run.failed)
        elif name:
            await self._store.objects.delete(name)
        return won


def work_object(planned: Planned, shard: int) -> str:
    """Name of the object that holds a shard's work."""
    return f"{planned.prefix}/{shard:05d}"


def tokens_of(usage: usage_pb2.Usage) -> Tokens:
    """Tokens used, as a fact keeps them."""
    return Tokens(
        prompt=usage.prompt_tokens,
        completion=usage.completion_tokens,
        cached=usage.cached_tokens,
        drafted=usage.drafted_tokens,
        accepted=usage.accepted_draft_tokens,
    )


def _is_over(facts: Facts, shard: int) -> bool:
    return facts.outcome is not None or shard in facts.shards
