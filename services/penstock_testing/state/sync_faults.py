"""Workers, routers and the lossy links between them, on a virtual clock: one schedule by seed.

The worker's half is the production log (ring, snapshots, heartbeats), the router's half the
production sync and index; frames go over as bytes. A link drops, doubles, delays and swaps them,
breaks, or goes silent; workers and routers restart; rings are short enough to overflow.
"""

import random
from dataclasses import dataclass, field

from penstock.worker.v1 import state_pb2, worker_service_pb2
from penstock_core.blocks import pack_hashes
from penstock_engine.api import KvEvent, KvMoved, KvRemoved, KvStored
from penstock_router.fleet import translate
from penstock_router.fleet.sync import SyncState, WorkerSync
from penstock_router.index.index import PrefixIndex
from penstock_worker.state.log import StateLog

TICK_S = 0.05
HEARTBEAT_S = 1.0
SILENCE_S = 5.0
_START = 7


class FaultyWorker:
    """A cache that changes at random, and the log that tells of it."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name = name
        self._rng = rng
        self._restarts = 0
        self.parents: dict[int, int] = {}
        self.off_device: set[int] = set()
        self.restart()

    def restart(self) -> None:
        """A new process: nothing is cached, the sequence begins anew."""
        self._restarts += 1
        info = state_pb2.WorkerInfo(worker_id=self.name, epoch=f"{self.name}.{self._restarts}")
        self.log = StateLog(info.epoch, info, ring_deltas=self._rng.choice((1, 4, 32)))
        self.parents.clear()
        self.off_device.clear()

    def change(self) -> None:
        """A few events of the cache: chains grow and branch, blocks go (leaves or not) or move."""
        events = [self._event() for _ in range(self._rng.randint(1, 4))]
        self.log.apply([event for event in events if event is not None])
        self.log.flush()

    def depth(self, chain: list[int], *, on_device: bool = False) -> int:
        """Leading blocks of a chain that it holds."""
        for count, key in enumerate(chain):
            if key not in self.parents or (on_device and key in self.off_device):
                return count
        return len(chain)

    def _event(self) -> KvEvent | None:
        kind, keys = self._rng.random(), list(self.parents)
        if kind < 0.6 or not keys:
            chain = chain_of(self._rng.randrange(4), self._rng.randint(1, 12))
            new = [key for key in chain if key not in self.parents]
            begin = chain.index(new[0]) if new else len(chain)
            run = chain[begin:]
            if not run or any(key in self.parents for key in run):
                return None
            parent = chain[begin - 1] if begin else _START
            self.parents |= dict(zip(run, [parent, *run], strict=False))
            return KvStored(parent, tuple(run))
        key = self._rng.choice(keys)
        if kind < 0.9:
            del self.parents[key]
            self.off_device.discard(key)
            return KvRemoved((key,))
        down = key not in self.off_device
        self.off_device ^= {key}
        return KvMoved((key,), "device" if down else "host", "host" if down else "device")


def chain_of(number: int, length: int) -> list[int]:
    """One of a few chains that share their first three blocks."""
    return [(n + 1 if n < 3 else 100 * (number + 1) + n) * 2**40 + 11 for n in range(length)]


@dataclass(slots=True)
class Faults:
    """Chances of each fault, a frame (the first four) or a tick (the others)."""

    drop: float = 0.0
    double: float = 0.0
    delay: float = 0.0
    swap: float = 0.0
    broken: float = 0.0
    silent: float = 0.0
    router_restart: float = 0.0
    worker_restart: float = 0.0


class _Ignores:
    def stored(self, hashes: object) -> None: ...
    def ledger(self, events: object) -> None: ...
    def reset(self, events: object) -> None: ...
    def report(self, load: object) -> None: ...


@dataclass(slots=True, eq=False)
class Link:
    """One router's stream from one worker, with what is under way on it."""

    worker: FaultyWorker
    sync: WorkerSync
    epoch: str = ""
    position: int | None = None
    beat_at: float = 0.0
    heard_at: float = 0.0
    silent_until: float = 0.0
    under_way: list[tuple[float, bytes]] = field(default_factory=list)

    def open(self, now: float) -> None:
        """Watch (again), as a follower and a worker's feed agree on it."""
        epoch, seq = self.sync.connecting()
        self.under_way.clear()
        self.epoch = self.worker.log.epoch
        self.position = seq or None if epoch == self.epoch else None
        self.beat_at, self.heard_at = now + HEARTBEAT_S, now

    def send(self, now: float, rng: random.Random, faults: Faults) -> None:
        """What the worker's feed puts out by now, with what the link makes of it."""
        for frame in self._frames(now):
            if now < self.silent_until or rng.random() < faults.drop:
                continue
            late = now + (rng.uniform(0, 1.5) if rng.random() < faults.delay else 0.0)
            # In order unless swapped: a frame never overtakes one that is late.
            late = max(late, self.under_way[-1][0] if self.under_way else 0.0)
            self.under_way += [(late, frame)] * (2 if rng.random() < faults.double else 1)
            if len(self.under_way) > 1 and rng.random() < faults.swap:
                self.under_way[-2:] = reversed(self.under_way[-2:])

    def deliver(self, now: float) -> None:
        """Let the router take what has arrived; it watches again where a follower would."""
        while self.under_way and self.under_way[0][0] <= now and not self.sync.out_of_step:
            _, raw = self.under_way.pop(0)
            message = worker_service_pb2.WatchStateResponse.FromString(raw)
            frame = translate.frame(message)
            self.heard_at = now
            if frame is not None:
                for _ in self.sync.apply(frame, now):
                    pass
        if self.sync.out_of_step or now - self.heard_at > SILENCE_S:
            if not self.sync.out_of_step:
                self.sync.lost(refused=False)
            self.open(now)

    def _frames(self, now: float) -> list[bytes]:
        log = self.worker.log
        frames = log.since(self.position) if self.position is not None else None
        if frames is None:
            frames = log.snapshot()
        self.position = log.seq
        if now >= self.beat_at:
            self.beat_at = now + HEARTBEAT_S
            frames = [*frames, log.heartbeat(state_pb2.WorkerLoad())]
        return frames


class Schedule:
    """A run of ticks over some workers and routers."""

    def __init__(self, seed: int, workers: int = 2, routers: int = 2) -> None:
        self._rng = random.Random(seed)
        self.now = 0.0
        self.workers = [FaultyWorker(f"w{n}", self._rng) for n in range(workers)]
        self.routers = [self._router() for _ in range(routers)]

    def run(self, ticks: int, faults: Faults, *, change: bool) -> None:
        """So many ticks under these faults."""
        rng = self._rng
        for _ in range(ticks):
            self.now += TICK_S
            for worker in self.workers:
                if rng.random() < faults.worker_restart:
                    self._restart(worker)
                if change and rng.random() < 0.5:
                    worker.change()
            for number, (_, links) in enumerate(self.routers):
                if rng.random() < faults.router_restart:
                    self.routers[number] = self._router()
                    continue
                for link in links:
                    self._tick(link, faults)

    def links(self) -> list[tuple[PrefixIndex, Link]]:
        """Every link, with the index that it feeds."""
        return [(index, link) for index, links in self.routers for link in links]

    def _tick(self, link: Link, faults: Faults) -> None:
        if self._rng.random() < faults.broken:
            link.sync.lost(refused=self._rng.random() < 0.5)
            link.open(self.now)
        if self._rng.random() < faults.silent:
            link.silent_until = self.now + self._rng.uniform(0, 8)
        link.send(self.now, self._rng, faults)
        link.deliver(self.now)

    def _restart(self, worker: FaultyWorker) -> None:
        worker.restart()
        for _, link in self.links():
            if link.worker is worker:
                link.sync.lost(refused=False)
                link.open(self.now)

    def _router(self) -> tuple[PrefixIndex, list[Link]]:
        index = PrefixIndex()
        links = [Link(worker, WorkerSync(index, _Ignores())) for worker in self.workers]
        for link in links:
            link.open(self.now)
        return index, links


def is_true(index: PrefixIndex, link: Link) -> bool:
    """Whether a router's index says of a worker what is so."""
    sync, worker = link.sync, link.worker
    if sync.slot is None or sync.state(link.heard_at) is not SyncState.LIVE:
        return False
    digest = 0
    for key in worker.parents:
        digest ^= key
    if (index.blocks(sync.slot), index.digest(sync.slot)) != (len(worker.parents), digest):
        return False
    for number in range(4):
        chain = chain_of(number, 12)
        depths = index.match(pack_hashes(chain))
        if depths[sync.slot] != worker.depth(chain):
            return False
        device = sync.slot if sync.device_slot is None else sync.device_slot
        if depths[device] != worker.depth(chain, on_device=True):
            return False
    return True
