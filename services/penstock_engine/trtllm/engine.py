"""The TensorRT-LLM engine: the ``Engine`` protocol over a loaded ``LLM``.

Owns what runs beside the requests: the only readers of events and figures, and a watch over an
engine that falls silent. Everything happens on one event loop, as the package demands.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

from penstock_core.errors import Conflict, EngineFailed, NotSupported, PenstockError
from penstock_engine.api import (
    Embedded,
    EmbedRequest,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineState,
    KvEvent,
    RequestDone,
)
from penstock_engine.revision import model_revision
from penstock_engine.trtllm import sampling
from penstock_engine.trtllm.admission import Admission
from penstock_engine.trtllm.checkpoint import Checkpoint, context
from penstock_engine.trtllm.feed import CacheFeed
from penstock_engine.trtllm.figures import IterationFigures
from penstock_engine.trtllm.job import Desk, Job
from penstock_engine.trtllm.llm_args import Build
from penstock_engine.trtllm.load import Load, Waiting
from penstock_engine.trtllm.pump import Pump
from penstock_engine.trtllm.settings import TrtLlmSettings
from penstock_engine.trtllm.submitter import EngineSubmitter, Loaded

logger = logging.getLogger(__name__)

_CAPACITY_WAIT_S = 10.0
_WATCH_S = 1.0
_SHUTDOWN_S = 60.0
_WARM_UP_TOKENS = 4

Headers = Callable[[], Mapping[str, str]]


def _no_headers() -> Mapping[str, str]:
    return {}


class TrtLlmEngine:
    """One loaded model. ``headers`` gives the trace context of the caller of ``generate``."""

    def __init__(
        self,
        loaded: Loaded,
        settings: TrtLlmSettings,
        checkpoint: Checkpoint,
        headers: Headers = _no_headers,
    ) -> None:
        self._loaded = loaded
        self._settings = settings
        self._headers = headers
        self._info = describe(settings, checkpoint)
        self._abilities = _abilities(settings, self._info)
        self._feed = CacheFeed(self._info.block_tokens)
        self._load = Load(self._info.block_tokens, settings.max_num_tokens)
        self._admission = Admission(settings.max_batch_size, settings.max_waiting)
        submitter = EngineSubmitter(
            loaded, self._abilities, self._feed, settings.lora, lambda why: self._end(why.message)
        )
        self._desk = Desk(
            submitter,
            self._admission,
            self._feed,
            self._load,
            settings.drain_timeout_s,
            settings.drafting.draft_tokens if settings.drafting is not None else 0,
        )
        llm = loaded.llm
        self._events = Pump(llm.get_kv_cache_events_async, self._feed.take, self._feed.lose)
        self._stats = Pump(llm.get_stats_async, self._note_stats, self._lose_stats)
        self._jobs: dict[str, Job] = {}
        self._num_requests = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._ended: str | None = None
        self._has_failed = False

    def info(self) -> EngineInfo:
        """What does not change while it runs; the number of blocks is known once it started."""
        return self._info

    def state(self) -> EngineState:
        """What it does now."""
        tokens = sum(job.waiting_tokens for job in self._jobs.values())
        of_batch = sum(job.waiting_tokens for job in self._jobs.values() if job.is_batch)
        waiting = Waiting(self._admission.num_waiting, tokens, of_batch)
        state = self._load.state(waiting, len(self._feed.mirror), time.monotonic())
        return replace(state, failed=self._has_failed, cache_losses=self._feed.taints)

    async def start(self) -> None:
        """Have a first request answered, then follow events and figures.

        Nothing can be read from the engine before it has had a request.

        Raises:
            EngineFailed: it gives no answer.
        """
        try:
            async with asyncio.timeout(self._settings.startup_timeout_s):
                await self._warm_up()
        except TimeoutError as error:
            waited = self._settings.startup_timeout_s
            raise EngineFailed(f"the engine did not answer within {waited:g} s") from error
        except Exception as error:
            raise EngineFailed(f"the engine failed its first request: {error!r}") from error
        pumps = [self._stats, self._events] if self._settings.has_events else [self._stats]
        self._tasks = [asyncio.create_task(pump.run()) for pump in pumps]
        self._tasks.append(asyncio.create_task(self._watch()))
        self._info = replace(self._info, capacity_blocks=await self._capacity())

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Continue a prompt; see ``Engine.generate``."""
        self._check_serving()
        sampling.check(request, self._abilities)
        if request.request_id in self._jobs:
            raise Conflict(f"request {request.request_id} is being served already")
        self._admission.check_room()
        self._num_requests += 1
        job = Job(request, self._num_requests, self._desk, self._headers())
        self._jobs[request.request_id] = job
        for pump in (self._events, self._stats):
            pump.poke()
        try:
            finished = False
            while not finished:
                item = await job.items.get()
                if isinstance(item, PenstockError):
                    raise item
                finished = isinstance(item, RequestDone)
                yield item
        finally:
            await job.close()
            if self._jobs.get(request.request_id) is job:
                del self._jobs[request.request_id]

    async def embed(self, request: EmbedRequest) -> Embedded:
        """Refused: a TensorRT-LLM engine is built to generate or to embed, never for both."""
        raise NotSupported(
            "TensorRT-LLM workers compute no embeddings; run a native worker for them"
        )

    def abort(self, request_id: str, choice_index: int | None = None) -> bool:
        """End a request or one of its samples. False if there is nothing to end."""
        job = self._jobs.get(request_id)
        return job is not None and job.abort(choice_index)

    def kv_events(self) -> AsyncIterator[Sequence[KvEvent]]:
        """Cache changes in order, complete from the start; ends when the engine is closed.

        Raises:
            EngineFailed: the engine failed.
        """
        return self._feed.events()

    async def close(self) -> None:
        """End what runs with EngineFailed, see it out of the engine and shut that down."""
        if self._ended is None:
            self._ended = "the engine was closed"
            self._feed.end()
        for job in self._jobs.values():
            job.fail(EngineFailed(self._ended))
        await asyncio.gather(*(job.close() for job in list(self._jobs.values())))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(_SHUTDOWN_S):
                await asyncio.to_thread(self._loaded.llm.shutdown)
        except TimeoutError:
            logger.error("the engine did not shut down within %g s", _SHUTDOWN_S)

    def _check_serving(self) -> None:
        if self._ended is not None:
            raise EngineFailed(self._ended)
        if not self._tasks:
            raise EngineFailed("the engine was not started")

    def _end(self, why: str) -> None:
        """The engine is dead: everybody hears it, and the process will end."""
        if self._ended is not None:
            return
        logger.error("the engine is given up: %s", why)
        self._ended, self._has_failed = why, True
        self._feed.end(why)
        for job in self._jobs.values():
            job.fail(EngineFailed(why))

    async def _warm_up(self) -> None:
        # A salt of its own: nobody's prompt can hit what it leaves in the cache.
        tokens = list(range(min(2 * _WARM_UP_TOKENS, self._info.vocab_size)))
        end = min(self._info.eos_token_ids, default=0)
        params = {"end_id": end, "ignore_eos": True, "detokenize": False}
        output = self._loaded.llm.generate_async(
            {"prompt_token_ids": tokens},
            self._loaded.package.build(
                Build("SamplingParams", params | {"max_tokens": _WARM_UP_TOKENS})
            ),
            streaming=True,
            cache_salt="penstock-warm-up",
        )
        async for _ in output:
            pass

    async def _capacity(self) -> int:
        """Blocks that the engine has: as its events tell, or its figures, or as it was told."""
        kv = self._settings.kv_cache
        if self._settings.has_events:
            told = await self._feed.capacity(_CAPACITY_WAIT_S)
            if told is not None:
                return told
        figures = self._load.rates.latest.max_blocks
        return figures or (kv.max_tokens or self._info.max_context_tokens) // kv.tokens_per_block

    async def _watch(self) -> None:
        limit = self._settings.stall_timeout_s
        while True:
            await asyncio.sleep(min(_WATCH_S, limit / 2))
            if self._load.silence_s(time.monotonic()) > limit:
                self._desk.submitter.failure(TimeoutError(f"no response within {limit:g} s"))

    def _note_stats(self, item: object) -> None:
        for stats in item if isinstance(item, list) else [item]:
            self._load.note(IterationFigures.of(stats), time.monotonic())

    def _lose_stats(self, error: Exception) -> None:
        logger.warning("the engine's figures cannot be read: %r", error)


def describe(settings: TrtLlmSettings, checkpoint: Checkpoint) -> EngineInfo:
    """What is known of an engine before it is built."""
    parallel, kv = settings.parallel, settings.kv_cache
    return EngineInfo(
        engine="trtllm",
        model_revision=model_revision(checkpoint.path),
        device=f"cuda x{parallel.num_gpus}",
        block_tokens=kv.tokens_per_block,
        capacity_blocks=(kv.max_tokens or 0) // kv.tokens_per_block,
        max_context_tokens=context(settings, checkpoint),
        max_batch=settings.max_batch_size,
        vocab_size=checkpoint.vocab_size,
        eos_token_ids=checkpoint.eos_token_ids,
        speculation=settings.speculation.mode,
        adapters=tuple(a.name for a in settings.lora.adapters) if settings.lora else (),
        stores_per_chunk=False,
    )


def _abilities(settings: TrtLlmSettings, info: EngineInfo) -> sampling.Abilities:
    return sampling.Abilities(
        vocab_size=info.vocab_size,
        max_context=info.max_context_tokens,
        eos_token_ids=info.eos_token_ids,
        adapters=frozenset(info.adapters),
        is_guided=settings.guided_decoding is not None,
        ignores_sampling=settings.drafting is not None and settings.drafting.ignores_sampling,
    )
