"""The native engine: the asynchronous face of the step thread.

Owns the streams of running requests and the hand-over between event loop and thread. All
decisions are the scheduler's, all arithmetic the runner's.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from penstock_core.errors import Conflict, EngineFailed, InvalidRequest, NotFound, PenstockError
from penstock_engine.api import (
    Embedded,
    EmbedRequest,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineState,
    KvEvent,
    RequestDone,
    TokenOut,
)
from penstock_engine.cache_log import KvEventLog
from penstock_engine.native.execution.embedding import Embeddings
from penstock_engine.native.execution.step_loop import Abort, Machine, Report, StepLoop, Submit
from penstock_engine.native.kv.memory import KvMemory
from penstock_engine.native.loading import (
    AdapterShelf,
    Blueprint,
    adapter_shelf,
    constraint_parts,
    draw_up,
    load_machine,
)
from penstock_engine.native.lora.pool import AdapterPool, PoolLimits
from penstock_engine.native.lora.reading import LoraWeights, read_adapter
from penstock_engine.native.mailbox import Mailbox, Outlet
from penstock_engine.native.models import read_pooling
from penstock_engine.native.scheduling.limits import Limits, check_embed, check_fits
from penstock_engine.native.scheduling.request import Matcher
from penstock_engine.native.scheduling.scheduler import Scheduler
from penstock_engine.native.settings import NativeSettings
from penstock_engine.native.structured.masks import StepMasks
from penstock_engine.native.structured.vocabulary import Vocabulary

T = TypeVar("T")


@dataclass(slots=True)
class _Stream:
    """One request's outputs on their way to its caller; bounded by the tokens it may have."""

    key: str
    open_choices: set[int]
    items: Outlet[EngineOutput | PenstockError]


class NativeEngine:
    """PyTorch on a CPU or one GPU behind the ``Engine`` protocol."""

    def __init__(
        self,
        settings: NativeSettings,
        vocabulary: Vocabulary | None = None,
        make_scheduler: Callable[[Limits, KvMemory], Scheduler] = Scheduler,
    ) -> None:
        """Decide everything but load nothing. Without a vocabulary, constraints are refused.

        Raises:
            InvalidRequest: the checkpoint or a setting is no good.
            NotSupported: the checkpoint asks for something this engine does not compute.
        """
        self._blueprint = draw_up(settings)
        info = self._blueprint.info
        limits = Limits(
            max_batch=settings.max_batch,
            max_batched_tokens=settings.max_batched_tokens,
            max_waiting=settings.max_waiting,
            max_context=info.max_context_tokens,
        )
        memory = KvMemory(info.capacity_blocks, info.block_tokens)
        self._check_fits = partial(check_fits, limits=limits, memory=memory)
        self._embeddings = Embeddings(self._blueprint.embed_limits, read_pooling(settings.model))
        self._embedding: set[asyncio.Future[Embedded]] = set()
        self._steps = StepLoop(
            make_scheduler(limits, memory),
            self._tell,
            settings.max_waiting + 1024,
            self._embeddings,
        )
        self._grammars, self._masks = constraint_parts(self._blueprint, vocabulary)
        self._shelf = adapter_shelf(self._blueprint)
        self._adapters = AdapterPool(
            self._read_adapter, self._shelf, PoolLimits(settings.max_adapters, settings.max_waiting)
        )
        self._adapter_of: dict[str, str] = {}
        self._streams: dict[str, _Stream] = {}
        self._keys: dict[str, str] = {}
        self._num_requests = 0
        self._events = KvEventLog(info.capacity_blocks)
        self._events_changed = asyncio.Event()
        self._ended: EngineFailed | None = None
        self._mailbox: Mailbox[Report] | None = None
        self._thread: threading.Thread | None = None

    def info(self) -> EngineInfo:
        """What does not change while it runs."""
        return self._blueprint.info

    def state(self) -> EngineState:
        """What it does now, as of its last step."""
        state, pool = self._steps.state, self._adapters
        if not pool.residents:
            return state
        return replace(state, adapters=pool.loaded, adapter_load_s=pool.load_s)

    async def start(self) -> None:
        """Load the model in the step thread and begin to serve. Raises EngineFailed if it cannot."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        self._mailbox = Mailbox(loop, self._hear)

        def say(error: Exception | None) -> None:
            loop.call_soon_threadsafe(_settle, ready, error)

        def load() -> Machine:
            return _load(self._blueprint, self._masks, self._shelf)

        self._thread = threading.Thread(
            target=self._steps.run, args=(load, say), name="engine-steps", daemon=True
        )
        self._thread.start()
        try:
            await ready
        except Exception as error:
            self._ended = EngineFailed(f"the model cannot be loaded: {error}")
            raise self._ended from error

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Continue a prompt; see ``Engine.generate``."""
        self._check(request)
        arrived = time.monotonic()
        matchers = await self._grammars.matchers(request)
        if request.adapter:
            await self._adapters.acquire(request.adapter)
        stream = self._submit(request, arrived, matchers)
        finished = False
        try:
            while not finished:
                item = await stream.items.take()
                finished = isinstance(item, RequestDone | PenstockError)
                if isinstance(item, PenstockError):
                    raise item
                yield item
        finally:
            del self._streams[stream.key], self._keys[request.request_id]
            if not finished:
                self._steps.abort(Abort(stream.key))

    async def embed(self, request: EmbedRequest) -> Embedded:
        """A vector for each text; see ``Engine.embed``."""
        self._check_serving()
        check_embed(request, self.info())
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Embedded] = loop.create_future()

        def tell(embedded: Embedded) -> None:
            loop.call_soon_threadsafe(_settle, answer, embedded)

        self._num_requests += 1
        own = replace(request, request_id=f"{request.request_id}#{self._num_requests}")
        self._embedding.add(answer)
        try:
            self._embeddings.submit(own, tell)
            self._steps.wake()
            return await answer
        finally:
            self._embedding.discard(answer)
            self._embeddings.cancel(own.request_id)

    def abort(self, request_id: str, choice_index: int | None = None) -> bool:
        """End a request or one of its samples. False if there is nothing to end."""
        key = self._keys.get(request_id)
        if key is None:
            return False
        open_choices = self._streams[key].open_choices
        if not open_choices or choice_index not in (None, *open_choices):
            return False
        self._steps.abort(Abort(key, choice_index))
        return True

    async def kv_events(self) -> AsyncIterator[Sequence[KvEvent]]:
        """Cache changes in order, complete from the start; ends when the engine is closed.

        Raises:
            EngineFailed: the engine failed.
        """
        while True:
            if len(self._events):
                yield self._events.take()
            elif self._ended is not None:
                if self.state().failed:
                    raise EngineFailed(self._ended.message)
                return
            else:
                self._events_changed.clear()
                await self._events_changed.wait()

    async def close(self) -> None:
        """End what runs with EngineFailed and join the thread."""
        self._steps.close()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self._thread = None
        if self._mailbox is not None:
            self._mailbox.close()
            self._mailbox = None
        self._end(EngineFailed("the engine was closed"))
        await self._adapters.close()
        await asyncio.to_thread(self._grammars.close)
        self._masks.close()

    def _check_serving(self) -> None:
        if self._ended is not None:
            raise EngineFailed(self._ended.message)
        if self._thread is None:
            raise EngineFailed("the engine was not started")

    def _check(self, request: EngineRequest) -> None:
        self._check_serving()
        if request.adapter and request.adapter not in self.info().adapters:
            raise NotFound(f"there is no adapter {request.adapter!r}")
        if not request.prompt:
            raise InvalidRequest("the prompt is empty", field="prompt")
        vocab = self.info().vocab_size
        emitted = (token for sample in request.emitted for token in sample)
        named = (*request.sampling.logit_bias, *request.stop_token_ids, *emitted)
        for path, tokens in (("prompt", request.prompt), ("sampling", named)):
            if tokens and not 0 <= min(tokens) <= max(tokens) < vocab:
                raise InvalidRequest(f"a token id is outside the vocabulary of {vocab}", field=path)
        self._check_fits(request)  # before it waits for its adapter

    def _submit(
        self, request: EngineRequest, arrived: float, matchers: Sequence[Matcher]
    ) -> _Stream:
        """Hand it to the thread. Its adapter, if any, is ours until the thread is done with it."""
        try:
            self._check_serving()  # it may have ended meanwhile
            stream = self._open(request)
        except PenstockError:
            self._release_adapter(request.adapter)
            raise
        try:
            spec = replace(request, request_id=stream.key)
            self._steps.submit(Submit(spec, arrived, matchers))
        except PenstockError:
            del self._streams[stream.key], self._keys[request.request_id]
            self._release_adapter(request.adapter)
            raise
        self._adapter_of[stream.key] = request.adapter
        return stream

    def _release_adapter(self, name: str) -> None:
        if name:
            self._adapters.release(name)

    def _read_adapter(self, name: str) -> LoraWeights:
        settings = self._blueprint.settings
        assert settings.adapters is not None, "adapters are listed without a directory"
        return read_adapter(
            settings.adapters / name, self._blueprint.config, settings.max_adapter_rank
        )

    def _open(self, request: EngineRequest) -> _Stream:
        """A stream under a key of its own: an id may come again while its forerunner is ending."""
        if request.request_id in self._keys:
            raise Conflict(f"request {request.request_id} is being served already")
        self._num_requests += 1
        key = f"{request.request_id}#{self._num_requests}"
        self._keys[request.request_id] = key
        stream = self._streams[key] = _Stream(
            key, set(range(request.n)), Outlet(asyncio.get_running_loop())
        )
        return stream

    # From the step thread to the event loop.

    def _tell(self, report: Report) -> None:
        assert self._mailbox is not None, "the step thread runs before start()"
        if not self._mailbox.put(report):
            self._steps.close()

    def _hear(self, report: Report) -> None:
        for key, output in report.outputs:
            stream = self._streams.get(key)
            if stream is not None:
                stream.items.put(output)
                if isinstance(output, TokenOut) and output.finish is not None:
                    stream.open_choices.discard(output.choice_index)
            if isinstance(output, RequestDone | PenstockError):
                self._release_adapter(self._adapter_of.pop(key, ""))
        if report.events:
            self._events.append(report.events)
            self._events_changed.set()
        if report.ended is not None:
            self._end(report.ended)

    def _end(self, reason: EngineFailed) -> None:
        if self._ended is None:
            self._ended = reason
            for stream in self._streams.values():
                stream.items.put(EngineFailed(reason.message))
            for answer in self._embedding:
                _settle(answer, EngineFailed(reason.message))
            self._events_changed.set()


def _settle(waiting: asyncio.Future[T], outcome: T | Exception) -> None:
    if waiting.done():
        return
    if isinstance(outcome, Exception):
        waiting.set_exception(outcome)
    else:
        waiting.set_result(outcome)


def _load(blueprint: Blueprint, masks: StepMasks, shelf: AdapterShelf) -> Machine:
    """Runs in the step thread, whose OpenMP team is the one that computes.

    Beside the fused kernel, which has threads of its own, what is left to torch is too little to
    wake a team for.
    """
    compute = blueprint.compute
    torch.set_num_threads(1 if compute.library else compute.threads)
    return load_machine(blueprint, masks, shelf)
