"""Blocks that are being computed, with the time they will be there.

The first request of a burst computes the prefix they share; its siblings see here that waiting for
it is cheaper than computing it again, on that worker or another. An entry ends when its blocks are
stored, when its request ends, or when its time is up. Pure; the caller brings the clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(slots=True, eq=False)
class _Run:
    """Blocks that one request computes on one worker."""

    worker_id: str
    request_id: str
    eta: float
    expires: float
    hashes: tuple[int, ...]


class PendingMatch(NamedTuple):
    """How far blocks under way extend a prefix, and when they will be there."""

    blocks: int
    eta: float
    request_ids: frozenset[str]


NOTHING = PendingMatch(0, 0.0, frozenset())


class PendingTable:
    """Runs of blocks under way, found by hash."""

    def __init__(self) -> None:
        self._by_hash: dict[int, list[_Run]] = {}
        self._by_request: dict[str, _Run] = {}

    def __len__(self) -> int:
        """Requests whose blocks are under way."""
        return len(self._by_request)

    def add(
        self, worker_id: str, request_id: str, hashes: Sequence[int], eta: float, expires: float
    ) -> None:
        """A request begins to compute these blocks there; ``eta`` and ``expires`` are clock times."""
        self.cancel(request_id)
        if not hashes:
            return
        run = _Run(worker_id, request_id, eta, expires, tuple(hashes))
        self._by_request[request_id] = run
        for key in run.hashes:
            self._by_hash.setdefault(key, []).append(run)

    def extent(self, worker_id: str, hashes: Sequence[int], depth: int) -> PendingMatch:
        """How many blocks beyond the first ``depth`` are under way on a worker, without a gap."""
        eta, requests, count = 0.0, set[str](), 0
        for key in hashes[depth:]:
            runs = [r for r in self._by_hash.get(key, ()) if r.worker_id == worker_id]
            if not runs:
                break
            first = min(runs, key=lambda run: run.eta)
            eta = max(eta, first.eta)
            requests.add(first.request_id)
            count += 1
        return PendingMatch(count, eta, frozenset(requests)) if count else NOTHING

    def stored(self, worker_id: str, hashes: Iterable[int]) -> bool:
        """These blocks are there now. Whether anything was waiting for them."""
        hit = False
        for key in hashes:
            runs = self._by_hash.get(key)
            if runs is None:
                continue
            for run in [r for r in runs if r.worker_id == worker_id]:
                hit = True
                self._unlink(run, key)
                if key == run.hashes[-1]:
                    self._end(run)
        return hit

    def settle(self, request_id: str, expires: float) -> None:
        """The request has its first token: blocks that are not stored by ``expires`` never will be."""
        run = self._by_request.get(request_id)
        if run is not None:
            run.expires = min(run.expires, expires)

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
        for run in [r for r in self._by_request.values() if r.worker_id == worker_id]:
            self._end(run)

    def expire(self, now: float) -> None:
        """Forget what should have been there by now."""
        for run in [r for r in self._by_request.values() if r.expires <= now]:
            self._end(run)

    def _end(self, run: _Run) -> None:
        self._by_request.pop(run.request_id, None)
        for key in run.hashes:
            self._unlink(run, key)

    def _unlink(self, run: _Run, key: int) -> None:
        runs = self._by_hash.get(key, [])
        if run in runs:
            runs.remove(run)
            if not runs:
                del self._by_hash[key]
