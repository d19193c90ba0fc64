"""Blocks that are being computed, with the time they will be there.

The first request of a burst computes the prefix they share; its siblings see here that waiting for
it is cheaper than computing it again, on that worker or another. An entry ends when its blocks are
stored, when its request ends, or when its time is up. Pure; the caller brings the clock.

A chain's hash names all that comes before it, so two chains are compared at one place, never block
by block. Hashes are packed, 8 bytes each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from penstock_core.blocks import HASH_BYTES
from penstock_router.index.journal import Journal
from penstock_router.index.runs import common


@dataclass(slots=True, eq=False)
class Run:
    """Blocks that one request computes on one worker: those of ``chain`` from ``begin`` (bytes) on."""

    worker_id: str
    request_id: str
    eta: float
    expires: float
    chain: bytes
    begin: int
    # Grows from run to run.
    number: int
    # Itself as a set.
    alone: frozenset[str]

    @property
    def key(self) -> bytes:
        """The first of its blocks, and so the name of what every chain shares that it extends."""
        return self.chain[self.begin : self.begin + HASH_BYTES]

    def reaches(self, chain: bytes, at: int) -> int:
        """How far, in bytes, another chain's prefix up to ``at`` is extended; ``at`` if it is not."""
        following = at + HASH_BYTES
        block = self.chain[at:following]
        if at < self.begin or not block or chain[at:following] != block:
            return at
        # Many prompts share their first blocks and no more.
        end = following + HASH_BYTES
        if self.chain[following:end] != chain[following:end]:
            return following
        return at + common(chain, at, self.chain, at)


class PendingMatch(NamedTuple):
    """How far blocks under way extend a prefix, and when they will be there."""

    blocks: int
    eta: float
    request_ids: frozenset[str]


NOTHING = PendingMatch(0, 0.0, frozenset())


class Times(NamedTuple):
    """Clock times: when blocks will be there, and when they are given up."""

    eta: float
    expires: float


def extent(runs: Sequence[Run], chain: bytes, depth: int) -> PendingMatch:
    """How many blocks beyond the first ``depth`` one worker's runs are to bring, without a gap."""
    begin = depth * HASH_BYTES
    if len(runs) == 1:
        [run] = runs
        blocks = (run.reaches(chain, begin) - begin) // HASH_BYTES
        return PendingMatch(blocks, max(run.eta, 0.0), run.alone) if blocks else NOTHING
    eta, at, requests = 0.0, begin, set[str]()
    while True:
        ways = [(r.eta, -reach, r) for r in runs if (reach := r.reaches(chain, at)) > at]
        if not ways:
            break
        first, reach, run = min(ways, key=lambda way: way[:2])
        eta, at = max(eta, first), -reach
        requests.add(run.request_id)
    if at == begin:
        return NOTHING
    return PendingMatch((at - begin) // HASH_BYTES, eta, frozenset(requests))


class PendingTable:
    """Runs of blocks under way, by worker and by request."""

    def __init__(self) -> None:
        self._by_worker: dict[str, dict[str, Run]] = {}
        self._by_request: dict[str, Run] = {}
        # By where they begin, and by their first block there.
        self._by_begin: dict[int, dict[bytes, list[Run]]] = {}
        self._added = 0
        # Nothing expires before.
        self._first_expires = float("inf")
        # Which blocks came under way, or are so no longer.
        self.journal = Journal()

    def __len__(self) -> int:
        """Requests whose blocks are under way."""
        return len(self._by_request)

    def add(self, worker_id: str, request_id: str, work: tuple[bytes, int], times: Times) -> None:
        """A request begins to compute blocks there.

        Args:
            worker_id: where.
            request_id: who.
            work: the packed hashes of its whole chain, and how many of the first blocks are there.
            times: when the blocks will be there, and when they are given up.
        """
        self.cancel(request_id)
        chain, depth = work
        if depth * HASH_BYTES >= len(chain):
            return
        self._added += 1
        ids = frozenset((request_id,))
        run = Run(worker_id, request_id, *times, chain, depth * HASH_BYTES, self._added, ids)
        self._by_request[request_id] = run
        self._by_worker.setdefault(worker_id, {})[request_id] = run
        self._first_expires = min(self._first_expires, run.expires)
        self._enter(run)

    def near(self, chain: bytes) -> dict[str, list[Run]]:
        """The runs that may extend a chain's prefix, by worker: their first block is in it."""
        found: dict[str, list[Run]] = {}
        for begin, by_key in self._by_begin.items():
            for run in by_key.get(chain[begin : begin + HASH_BYTES], ()):
                found.setdefault(run.worker_id, []).append(run)
        for runs in found.values():
            if len(runs) > 1:
                runs.sort(key=_number)
        return found

    def extent(self, worker_id: str, chain: bytes, depth: int) -> PendingMatch:
        """How many blocks beyond the first ``depth`` are under way on a worker, without a gap."""
        return extent(self.near(chain).get(worker_id, ()), chain, depth)

    def stored(self, worker_id: str, packed: bytes) -> bool:
        """These blocks are there now. Whether anything was waiting for them."""
        hit = False
        for run in list(self._by_worker.get(worker_id, {}).values()):
            if run.chain[-HASH_BYTES:] in packed:
                hit = True
                self._end(run)
                continue
            at = packed.find(run.chain[run.begin : run.begin + HASH_BYTES])
            if at >= 0:
                hit = True
                self._leave(run)
                run.begin += common(packed, at, run.chain, run.begin)
                self._enter(run)
        return hit

    def settle(self, request_id: str, expires: float) -> None:
        """The request has its first token: blocks that are not stored by ``expires`` never will be."""
        run = self._by_request.get(request_id)
        if run is not None:
            run.expires = min(run.expires, expires)
            self._first_expires = min(self._first_expires, run.expires)

    def keep(self, request_id: str, expires: float) -> None:
        """The worker has admitted the request: it will be computed, however long that takes."""
        run = self._by_request.get(request_id)
        if run is not None:
            run.expires = max(run.expires, expires)

    def is_open(self, request_ids: Iterable[str]) -> bool:
        """Whether blocks of any of these requests are still under way."""
        return any(request_id in self._by_request for request_id in request_ids)

    def cancel(self, request_id: str) -> None:
        """The request computes nothing any more."""
        run = self._by_request.get(request_id)
        if run is not None:
            self._end(run)

    def drop_worker(self, worker_id: str) -> None:
        """The worker is gone, and what it computed with it."""
        for run in list(self._by_worker.get(worker_id, {}).values()):
            self._end(run)

    def expire(self, now: float) -> None:
        """Forget what should have been there by now."""
        if now < self._first_expires:
            return
        for run in [r for r in self._by_request.values() if r.expires <= now]:
            self._end(run)
        left = self._by_request.values()
        self._first_expires = min([run.expires for run in left], default=float("inf"))

    def _end(self, run: Run) -> None:
        del self._by_request[run.request_id]
        self._leave(run)
        here = self._by_worker[run.worker_id]
        del here[run.request_id]
        if not here:
            del self._by_worker[run.worker_id]

    def _enter(self, run: Run) -> None:
        self.journal.note(run.key)
        self._by_begin.setdefault(run.begin, {}).setdefault(run.key, []).append(run)

    def _leave(self, run: Run) -> None:
        self.journal.note(run.key)
        by_key = self._by_begin[run.begin]
        runs = by_key[run.key]
        runs.remove(run)
        if not runs:
            del by_key[run.key]
            if not by_key:
                del self._by_begin[run.begin]


def _number(run: Run) -> int:
    return run.number
