"""A whole worker in one object: engine, server, feed, registration; how it starts and ends."""

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass, field

from penstock.inference.v1 import inference_service_pb2 as inference_pb2
from penstock.inference.v1.inference_service_pb2_grpc import (
    add_InferenceServiceServicer_to_server as add_inference,
)
from penstock.worker.v1 import state_pb2
from penstock.worker.v1 import worker_service_pb2 as worker_pb2
from penstock.worker.v1.worker_service_pb2_grpc import (
    add_WorkerServiceServicer_to_server as add_worker,
)
from penstock_core.cost.pricing import NO_PRICE, Price
from penstock_core.cost.spending import SpendingLedger
from penstock_core.registry import RedisRegistry, WorkerEntry
from penstock_core.rpc.interceptors import ServerInterceptor
from penstock_core.rpc.server import RpcServer
from penstock_core.security.tls import PLAIN, Tls
from penstock_core.version import VERSION
from penstock_engine.api import Engine
from penstock_text.chat import ChatTemplate
from penstock_text.tokenizer import Tokenizer
from penstock_worker import translate
from penstock_worker.accounting.accounts import Accounts
from penstock_worker.accounting.bookkeeper import Bookkeeper
from penstock_worker.accounting.ledger import Ledger
from penstock_worker.accounting.metrics import EngineGauges, RequestMetrics
from penstock_worker.accounting.report import Reporter
from penstock_worker.answers.cache import ResponseCache
from penstock_worker.answers.memory import Memory
from penstock_worker.embedding import Embedder
from penstock_worker.generation.generation import Services
from penstock_worker.generation.outbox import COALESCE_S, Paces
from penstock_worker.intake.access import WorkerAccess
from penstock_worker.intake.lease import LeaseCheck
from penstock_worker.intake.plan import Intake, ServedModel
from penstock_worker.intake.running import DrainResult, RequestTable
from penstock_worker.relay.relay import Relays
from penstock_worker.servicer import InferenceServicer
from penstock_worker.state.feed import FeedTiming, StateFeed
from penstock_worker.state.log import RING_DELTAS, StateLog
from penstock_worker.state.registration import Registration
from penstock_worker.worker_service import WorkerServicer

logger = logging.getLogger(__name__)

# How long ended streams may take to tell their clients so.
_LAST_WORDS_S = 2.0


@dataclass(frozen=True, slots=True)
class Text:
    """How the model reads and writes; ``source`` is where others find the same tokenizer."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    source: str


@dataclass(frozen=True, slots=True)
class Options:
    """What a worker is told besides its model. See ``WorkerSettings`` for the meanings."""

    worker_id: str
    models: tuple[str, ...]
    listen: str = "127.0.0.1:0"
    advertise: str = ""
    registry_url: str = ""
    lease_secret: bytes = field(default=b"", repr=False)
    tls: Tls = PLAIN
    grace_s: float = 30.0
    zone: str = ""
    pool: str = ""
    cost_class: str = ""
    price: Price = NO_PRICE
    metered_tenants: int = 100
    coalesce_s: float = COALESCE_S
    response_cache_bytes: int = 64 << 20
    response_cache_ttl_s: float = 3600.0
    ring_deltas: int = RING_DELTAS
    feed: FeedTiming = field(default_factory=FeedTiming)


class Worker:
    """Serves one engine. ``start`` then ``close``, or ``run``; ``ready`` is set once it serves."""

    def __init__(self, engine: Engine, text: Text, options: Options) -> None:
        self.info = _describe(engine, text, options)
        self.ready = asyncio.Event()
        self._engine = engine
        self._options = options
        self._requests = RequestTable()
        gauges = self._gauges = EngineGauges(self.info.capacity_blocks)
        log = StateLog(self.info.epoch, self.info, options.ring_deltas)
        self._feed = StateFeed(log, engine, gauges, options.feed)
        model = ServedModel(engine.info(), self.info, text.tokenizer, text.template)
        leases = LeaseCheck(options.lease_secret, self.info.worker_id, self.info.epoch)
        metrics = RequestMetrics()
        reporter = Reporter(metrics, options.worker_id)
        self.accounts = Accounts(options.price, options.metered_tenants)
        services = Services(
            engine=engine,
            model=model,
            ledger=Ledger(self._feed.note),
            reporter=reporter,
            paces=Paces(options.coalesce_s),
            accounts=self.accounts,
        )
        embedder = Embedder(engine, model, leases, self._requests, metrics, self.accounts)
        intake = Intake(model, leases)
        kept = ResponseCache(options.response_cache_bytes, options.response_cache_ttl_s)
        memory = Memory(kept, model, reporter)
        inference = InferenceServicer(intake, self._requests, services, embedder, memory)
        interceptor = ServerInterceptor(WorkerAccess(options.lease_secret))
        self._relays = Relays(interceptor, inference.answer)
        control = WorkerServicer(
            self.info, engine, self._feed, self._requests, self._relays, self.drain
        )
        self._rpc = RpcServer(
            interceptor,
            [lambda s: add_inference(inference, s), lambda s: add_worker(control, s)],
            [
                inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
                worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name,
            ],
            tls=options.tls,
        )
        self._registry: RedisRegistry | None = None
        self._registration: Registration | None = None
        self._bookkeeper: Bookkeeper | None = None
        self._announcing: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then drain.

        Raises:
            EngineFailed: the engine broke; a supervisor should start a new process.
            OSError: the address cannot be bound.
        """
        stopped = asyncio.create_task(stop.wait())
        grace_s = 0.0  # for what fails; an orderly end gives more
        try:
            await self.start()
            await self._until(stopped)
            grace_s = self._options.grace_s
        finally:
            stopped.cancel()
            await self.close(grace_s)

    async def _until(self, stopped: "asyncio.Task[bool]") -> None:
        """Wait for the signal; raise what a task of ours died of."""
        watched: set[asyncio.Task[bool] | asyncio.Task[None]] = {stopped, *self._tasks}
        while stopped in watched:
            done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()

    async def start(self) -> None:
        """Start the engine, then take requests and announce that."""
        port = self._rpc.bind(self._options.listen)
        self.info.endpoint = self._options.advertise or _address(self._options.listen, port)
        await self._engine.start()
        # Some engines know only now how many blocks they have.
        self.info.capacity_blocks = self._gauges.capacity_blocks = (
            self._engine.info().capacity_blocks
        )
        await self._rpc.start()
        self._tasks.append(asyncio.create_task(self._feed.run()))
        await self._rpc.serve()
        logger.info("worker %s serves on %s", self.info.worker_id, self.info.endpoint)
        if self._options.registry_url:
            ledger = SpendingLedger(self._options.registry_url)
            self._bookkeeper = Bookkeeper(ledger, self.accounts, self.info.epoch)
            self._tasks.append(asyncio.create_task(self._bookkeeper.run()))
            self._registry = RedisRegistry(self._options.registry_url)
            entry = WorkerEntry(self.info.endpoint, self.info.worker_id)
            self._registration = Registration(self._registry, entry)
            self._announcing = asyncio.create_task(self._registration.run())
            self._tasks.append(self._announcing)
        self.ready.set()

    async def drain(self, grace_s: float) -> DrainResult:
        """Send new requests elsewhere and wait for the running ones; end those that take too long."""
        await self._rpc.not_serving()
        if self._feed.health == state_pb2.WORKER_HEALTH_SERVING:
            self._feed.set_health(state_pb2.WORKER_HEALTH_DRAINING)
        if self._registration is not None:
            if self._announcing is not None:
                await _end(self._announcing)
            await self._registration.withdraw()
        return await self._requests.drain(grace_s)

    async def close(self, grace_s: float = 0.0) -> None:
        """Drain, then stop everything."""
        result = await self.drain(grace_s)
        logger.info("drained: %d finished, %d ended", result.finished, result.aborted)
        self._feed.close()
        self._relays.close()
        await self._rpc.stop(_LAST_WORDS_S)
        await self._release()

    async def kill(self) -> None:
        """Stop as a crash would look from outside: streams break, nothing is withdrawn."""
        await self._rpc.stop(0)
        await self._release(books=False)

    async def _release(self, *, books: bool = True) -> None:
        for task in self._tasks:
            await _end(task)
        if self._bookkeeper is not None:
            await (self._bookkeeper.close() if books else self._bookkeeper.release())
        await self._engine.close()
        if self._registry is not None:
            await self._registry.close()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _describe(engine: Engine, text: Text, options: Options) -> state_pb2.WorkerInfo:
    info = translate.describe_engine(engine.info())
    info.worker_id = options.worker_id
    info.epoch = secrets.token_hex(16)
    info.models.extend(options.models)
    info.tokenizer_digest = text.tokenizer.digest
    info.tokenizer_source = text.source
    info.zone = options.zone
    info.pool = options.pool
    info.cost_class = options.cost_class
    info.price_per_hour = options.price.per_hour
    info.currency = options.price.currency if options.price.is_set else ""
    info.version = VERSION
    info.relays = True
    info.started_unix_s = int(time.time())
    return info


def _address(listen: str, port: int) -> str:
    if listen.startswith("unix:"):
        return listen
    host = listen.rpartition(":")[0]
    return f"{host}:{port}"
