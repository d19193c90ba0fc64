"""Ends a batch: writes its output and error files in input order, then the outcome.

It works on a complete set of shard facts only (of a stopped batch it closes the missing ones
itself), so any two finalizers of the same ending write the same files.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from typing import IO, NoReturn

from penstock_batch.planning.records import Answer, load_answers, load_work, to_json
from penstock_batch.running.answers import Job, not_run
from penstock_batch.running.runner import work_object
from penstock_batch.state.facts import Created, Ending, Facts, Outcome, Planned, ShardDone
from penstock_batch.state.fold import ending_due
from penstock_batch.stores.files import FileStore
from penstock_batch.stores.store import FactStore
from penstock_core.errors import InternalError

_SPOOL_BYTES = 32 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024


class Spool:
    """Results of a batch on their way from shard order to input order."""

    def __init__(self, lines: int) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115
        self._places: list[tuple[int, int, bool] | None] = [None] * lines
        self._end = 0

    def add(self, answers: Iterable[Answer]) -> None:
        """Take lines' results.

        Raises:
            InternalError: a line does not exist or has its result already.
        """
        for answer in answers:
            self._add(answer)

    def _add(self, answer: Answer) -> None:
        index = answer.number - 1
        if not 0 <= index < len(self._places) or self._places[index] is not None:
            raise InternalError(f"line {answer.number} was answered twice or does not exist")
        raw = to_json(answer.result) + b"\n"
        self._places[index] = (self._end, len(raw), answer.is_error)
        self._file.write(raw)
        self._end += len(raw)

    def check(self) -> None:
        """Raise InternalError unless every line has its result."""
        if None in self._places:
            raise InternalError(f"line {self._places.index(None) + 1} has no answer")

    def count(self, *, errors: bool) -> int:
        """Lines of the error file, or of the output file."""
        return sum(place is not None and place[2] is errors for place in self._places)

    async def lines(self, *, errors: bool) -> AsyncIterator[bytes]:
        """One of the two files, in input order, in pieces."""
        places = [p for p in self._places if p is not None and p[2] is errors]
        start = 0
        while start < len(places):
            end, size = start, 0
            while end < len(places) and size < _CHUNK_BYTES:
                size += places[end][1]
                end += 1
            yield await asyncio.to_thread(self._read, places[start:end])
            start = end

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def _read(self, places: list[tuple[int, int, bool]]) -> bytes:
        parts = []
        for offset, size, _ in places:
            self._file.seek(offset)
            parts.append(self._file.read(size))
        return b"".join(parts)


class Finalizer:
    """Ends batches."""

    def __init__(self, store: FactStore, files: FileStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._files = files
        self._clock = clock

    async def run(self, batch_id: str) -> None:
        """End a batch if it is due; nothing otherwise.

        Raises:
            Unavailable: the store does not answer.
            InternalError: a line has no answer or two; the batch is left as it is.
        """
        facts = await self._store.load(batch_id)
        ending = ending_due(facts, self._clock())
        if facts.created is None or ending is None:
            return
        if facts.planned is None:
            await self._store.put(batch_id, Outcome(self._clock(), ending))
            return
        for shard in facts.missing_shards():
            await self._store.put(batch_id, ShardDone(self._clock(), shard, closed=True))
        facts = await self._store.load(batch_id)
        spool = Spool(facts.planned.lines if facts.planned else 0)
        try:
            await self._gather(batch_id, facts, ending, spool)
            outcome = await self._write(batch_id, facts.created or _never(), ending, spool)
        finally:
            spool.close()
        if not await self._store.put(batch_id, outcome):
            await self._clean_up(batch_id, facts.created or _never(), outcome)

    async def _gather(self, batch_id: str, facts: Facts, ending: Ending, spool: Spool) -> None:
        created, planned = facts.created or _never(), facts.planned or _never()
        job = Job(batch_id, created.endpoint, int(created.at))
        for shard in range(planned.shards):
            answers = await shard_answers(self._store, planned, facts.shards[shard], job, ending)
            await asyncio.to_thread(spool.add, answers)
        spool.check()

    async def _write(
        self, batch_id: str, created: Created, ending: Ending, spool: Spool
    ) -> Outcome:
        ids = {}
        for errors in (False, True):
            if not spool.count(errors=errors):
                continue
            kind = "error" if errors else "output"
            ids[kind] = _file_id(batch_id, created, ending, kind)
            await self._files.write_output(
                created.tenant,
                ids[kind],
                f"{batch_id}_{kind}.jsonl",
                spool.lines(errors=errors),
                self._clock(),
            )
        return Outcome(
            at=self._clock(),
            ending=ending,
            output_file_id=ids.get("output", ""),
            error_file_id=ids.get("error", ""),
            completed=spool.count(errors=False),
            failed=spool.count(errors=True),
        )

    async def _clean_up(self, batch_id: str, created: Created, mine: Outcome) -> None:
        """Another finalizer was first: delete our files unless they are its files too."""
        winner = (await self._store.load(batch_id)).outcome
        kept = {winner.output_file_id, winner.error_file_id} if winner else set()
        for file_id in {mine.output_file_id, mine.error_file_id} - kept - {""}:
            await self._files.delete(created.tenant, file_id)


async def shard_answers(
    store: FactStore, planned: Planned, done: ShardDone, job: Job, ending: Ending | None
) -> list[Answer]:
    """Results of every line of a shard, by line; of those not run, how the batch ended.

    Raises:
        InternalError: the stored answers are damaged, or lack a line of a shard that was not closed.
    """
    raw_work = await store.objects.get(work_object(planned, done.shard))
    raw_answers = await store.objects.get(done.object_name) if done.object_name else b""
    return await asyncio.to_thread(_merge, raw_work, raw_answers, done, job, ending)


def _merge(
    raw_work: bytes, raw_answers: bytes, done: ShardDone, job: Job, ending: Ending | None
) -> list[Answer]:
    if done.object_name and hashlib.sha256(raw_answers).hexdigest() != done.sha256:
        raise InternalError(f"{done.object_name} is damaged: its digest differs")
    merged = list(load_answers(raw_answers))
    present = {answer.number for answer in merged}
    for work in load_work(raw_work):
        for line in work.lines:
            if line.number not in present:
                if not done.closed or ending not in (Ending.CANCELLED, Ending.EXPIRED):
                    raise InternalError(f"shard {done.shard} lacks line {line.number}")
                merged.append(not_run(job, line, ending))
    return sorted(merged, key=lambda answer: answer.number)


def _file_id(batch_id: str, created: Created, ending: Ending, kind: str) -> str:
    """The same for every finalizer of this ending, so that a crashed one's files are replaced."""
    digest = hashlib.sha256(f"{batch_id}:{ending}:{kind}".encode()).hexdigest()
    return f"file_{int(created.at * 1000):012x}{digest[:16]}"


def _never() -> NoReturn:
    raise AssertionError("facts are never taken back")
