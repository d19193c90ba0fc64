"""A deterministic engine without a model: truthful about its cache, slow only when told to be.

The next token is a function of (prompt, position, seed, choice) or comes from a script, so tests
know outputs beforehand and a resumed request goes on as it would have. Time never passes by itself:
``hold``, ``allow`` and ``release`` let it go step by step.
"""

import asyncio
import math
import time
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import xxhash

from penstock_core.blocks import chain, pack_tokens, reusable_blocks
from penstock_core.errors import (
    Conflict,
    EngineFailed,
    InvalidRequest,
    NotSupported,
    Overloaded,
    PromptTooLong,
)
from penstock_engine.api import (
    Admitted,
    Embedded,
    EmbedRequest,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineState,
    FinishReason,
    KvEvent,
    Logprob,
    RequestDone,
    TokenOut,
    Vector,
)
from penstock_engine.native.scheduling.limits import check_embed
from penstock_engine.sharing import Part, Sharing
from penstock_testing.engines.gate import StepGate
from penstock_testing.engines.models import BYTE_EOS, BYTE_VOCAB_SIZE
from penstock_testing.engines.prefix import FakePrefixCache

Script = Sequence[int] | Callable[[EngineRequest, int], Sequence[int]]
Pace = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FakeConfig:
    """What kind of engine is played.

    ``alphabet``: tokens it speaks (a to z as bytes). ``drafts``: drafted and accepted tokens that each
    request is said to have had.
    """

    model_revision: str = "fake-1"
    vocab_size: int = BYTE_VOCAB_SIZE
    eos_token_ids: frozenset[int] = frozenset({BYTE_EOS})
    block_tokens: int = 32
    capacity_blocks: int = 1024
    max_context_tokens: int = 4096
    max_batch: int = 16
    max_waiting: int = 256
    tokens_per_step: int = 1
    drafts: tuple[int, int] = (0, 0)
    embedding_dimensions: int = 8
    max_embed_tokens: int = 64
    alphabet: Sequence[int] = range(97, 123)
    adapters: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Run:
    """One request on its way."""

    request: EngineRequest
    arrived: float
    aborted: set[int] = field(default_factory=set)
    outputs: list[list[int]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    is_prefilled: bool = False
    part: Part | None = None

    @property
    def is_aborted(self) -> bool:
        return len(self.aborted) == self.request.n


class FakeEngine:
    """See the module. ``requests`` keeps what it was asked; ``pace`` is awaited with each step's tokens."""

    def __init__(
        self,
        config: FakeConfig | None = None,
        *,
        script: Script | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config or FakeConfig()
        self.requests: list[EngineRequest] = []
        self.embedded: list[EmbedRequest] = []
        self.cache = FakePrefixCache(self.config.capacity_blocks)
        self._script = script
        self._pace = pace
        self._clock = clock
        self._gate = StepGate()
        self._sharing = Sharing(step_tokens=512)
        self._waiting: dict[str, _Run] = {}
        self._running: dict[str, _Run] = {}
        self._failure: str | None = None
        self._closed = False

    # What tests steer it by.

    def hold(self) -> None:
        """Stop before the next step (a prefill, or a token of each sample)."""
        self._gate.hold()

    def release(self) -> None:
        """Go on at full speed."""
        self._gate.release()

    def allow(self, steps: int) -> None:
        """While held, take this many steps (over all requests)."""
        self._gate.allow(steps)

    def fail(self, message: str = "the fake engine was told to fail") -> None:
        """Break, as an engine does whose device is gone."""
        self._failure = message
        self._gate.poke()

    def drop_cache(self) -> None:
        """Evict every block that no request holds."""
        self.cache.clear()
        self._gate.poke()

    async def until(self, condition: Callable[["FakeEngine"], bool], timeout_s: float = 10) -> None:
        """Wait until something is true of this engine. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._gate.until(lambda: condition(self))

    # The engine's contract.

    def info(self) -> EngineInfo:
        """What was configured."""
        c = self.config
        return EngineInfo(
            engine="fake",
            model_revision=c.model_revision,
            device="none",
            block_tokens=c.block_tokens,
            capacity_blocks=c.capacity_blocks,
            max_context_tokens=c.max_context_tokens,
            max_batch=c.max_batch,
            vocab_size=c.vocab_size,
            eos_token_ids=c.eos_token_ids,
            adapters=c.adapters,
            embedding_dimensions=c.embedding_dimensions,
            max_embed_tokens=c.max_embed_tokens,
        )

    async def start(self) -> None:
        """Nothing to load."""

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """See ``penstock_engine.api.Engine.generate``."""
        run = self._enter(request)
        try:
            await self._gate.until(lambda: self._may_run(run))
            self._raise_failure()
            queue_s = self._clock() - run.arrived
            if not run.is_aborted:
                self._admit(run)
                yield Admitted(run.cached_tokens, queue_s)
            started, computed = self._clock(), len(request.prompt) - run.cached_tokens
            run.part = self._sharing.enter(computed, started)
            await self._step(run, computed)
            self._prefilled(run)
            prefill_s = self._clock() - started
            self._sharing.decodes(run.part, self._clock())
            async with aclosing(self._decode(run)) as outputs:
                async for output in outputs:
                    yield output
            share = self._sharing.leave(run.part, self._clock())
            yield RequestDone(
                run.cached_tokens, computed, queue_s, prefill_s, share, *self.config.drafts
            )
        finally:
            self._leave(run)

    async def embed(self, request: EmbedRequest) -> Embedded:
        """A unit vector that hangs on each text's tokens alone; takes a step, so it can be held."""
        self._raise_failure()
        check_embed(request, self.info())
        self.embedded.append(request)
        part = self._sharing.enter(sum(map(len, request.texts)), self._clock())
        try:
            await self._gate.step(lambda: self._failure is not None)
        finally:
            share = self._sharing.leave(part, self._clock())
        self._raise_failure()
        vectors = [self.vector_of(text, request.dimensions) for text in request.texts]
        return Embedded(vectors, share)

    def vector_of(self, text: Sequence[int], dimensions: int | None = None) -> Vector:
        """What it says a text's vector is."""
        size = self.config.embedding_dimensions
        raw = [xxhash.xxh3_64_intdigest(pack_tokens(text), seed=i) / 2**63 - 1 for i in range(size)]
        kept = raw[:dimensions]
        length = math.sqrt(sum(value * value for value in kept))
        return array("f", [value / length for value in kept])

    def abort(self, request_id: str, choice_index: int | None = None) -> bool:
        """See ``penstock_engine.api.Engine.abort``."""
        run = self._running.get(request_id) or self._waiting.get(request_id)
        if run is None:
            return False
        run.aborted.update(range(run.request.n) if choice_index is None else [choice_index])
        self._gate.poke()
        return True

    def state(self) -> EngineState:
        """Counts are true; rates are made up."""
        runs = self._running.values()
        waiting = self._waiting.values()
        queued = sum(len(r.request.prompt) - r.cached_tokens for r in runs if not r.is_prefilled)
        return EngineState(
            running=len(runs),
            waiting=len(waiting),
            queued_prefill_tokens=queued + sum(len(r.request.prompt) for r in waiting),
            context_tokens=sum(len(r.request.prompt) + sum(map(len, r.outputs)) for r in runs),
            used_blocks=self.cache.num_held,
            cached_blocks=len(self.cache) - self.cache.num_held,
            step_s=0.01,
            tokens_per_step=float(self.config.tokens_per_step),
            prefill_tokens_per_s=10_000.0,
            failed=self._failure is not None,
            busy_s=self._sharing.busy_s(self._clock()),
        )

    async def kv_events(self) -> AsyncIterator[Sequence[KvEvent]]:
        """See ``penstock_engine.api.Engine.kv_events``."""
        while True:
            await self._gate.until(lambda: bool(self.cache.events or self._failure or self._closed))
            if events := self.cache.take_events():
                yield events
                continue
            self._raise_failure()
            return

    async def close(self) -> None:
        """Abort what runs."""
        self._closed = True
        for request_id in [*self._running, *self._waiting]:
            self.abort(request_id)
        self._gate.poke()

    # How it works.

    def _enter(self, request: EngineRequest) -> _Run:
        self._raise_failure()
        if self._closed:
            raise EngineFailed("the engine is closed")
        if request.request_id in self._running or request.request_id in self._waiting:
            raise Conflict(f"request {request.request_id} runs already")
        self._check(request)
        if len(self._waiting) >= self.config.max_waiting:
            raise Overloaded("the engine's queue is full", retry_after_s=1.0)
        self.requests.append(request)
        emitted = [list(tokens) for tokens in request.emitted] or [[] for _ in range(request.n)]
        run = _Run(request, self._clock(), outputs=emitted)
        self._waiting[request.request_id] = run
        self._gate.poke()
        return run

    def _check(self, request: EngineRequest) -> None:
        if request.constraint is not None:
            raise NotSupported("the fake engine knows no constraints")
        size, limit = len(request.prompt) + request.max_tokens, self.config.max_context_tokens
        if not request.prompt or request.max_tokens < 1:
            raise InvalidRequest("nothing to do")
        if size > limit:
            raise PromptTooLong(f"{size} tokens exceed the context of {limit}")

    def _may_run(self, run: _Run) -> bool:
        if run.is_aborted or self._failure is not None:
            return True
        first = min(self._waiting.values(), key=lambda r: r.request.priority.value)
        return first is run and len(self._running) < self.config.max_batch

    def _admit(self, run: _Run) -> None:
        request = run.request
        self._running[request.request_id] = self._waiting.pop(request.request_id)
        hashes = self._chain(request.prompt, request)
        usable = reusable_blocks(len(request.prompt), self.config.block_tokens)
        depth = self.cache.match(hashes[:usable])
        self.cache.hold(hashes[:depth])
        run.held = hashes[:depth]
        run.cached_tokens = depth * self.config.block_tokens
        self._gate.poke()

    async def _step(self, run: _Run, num_tokens: int) -> None:
        await self._gate.step(lambda: run.is_aborted or self._failure is not None)
        if self._pace is not None:
            await self._pace(num_tokens)
        self._raise_failure()

    def _prefilled(self, run: _Run) -> None:
        if not run.is_aborted:
            run.is_prefilled = True
            self._store(run, run.request.prompt)

    def _store(self, run: _Run, tokens: Sequence[int]) -> None:
        hashes = self._chain(tokens, run.request)
        depth = next((i for i, h in enumerate(hashes) if h not in run.held), len(hashes))
        parent = hashes[depth - 1] if depth else run.request.chain_start
        run.held += self.cache.store(parent, hashes[depth:])
        self._gate.poke()

    async def _decode(self, run: _Run) -> AsyncGenerator[TokenOut, None]:
        live = set(range(run.request.n))
        is_first = True  # the prefill's logits give the first token without a step of its own
        while live:
            if not is_first:
                await self._step(run, len(live))
            is_first = False
            for choice in sorted(live):
                out = self._draw(run, choice)
                run.outputs[choice].extend(out.token_ids)
                if out.finish is not None:
                    live.discard(choice)
                    if out.finish is not FinishReason.ABORTED:
                        # The last token's KV is never computed.
                        self._store(run, [*run.request.prompt, *run.outputs[choice]][:-1])
                yield out

    def _draw(self, run: _Run, choice: int) -> TokenOut:
        request, position = run.request, len(run.outputs[choice])
        tokens: list[int] = []
        finish, matched = None, None
        if choice in run.aborted:
            finish = FinishReason.ABORTED
        while finish is None and len(tokens) < self.config.tokens_per_step:
            at = position + len(tokens)
            if at >= request.max_tokens:
                finish = FinishReason.LENGTH
                break
            token = self.next_token(request, choice, at)
            if token in request.stop_token_ids and at >= request.min_tokens:
                finish, matched = FinishReason.STOP, token
                break
            tokens.append(token)
            if at + 1 == request.max_tokens:
                finish = FinishReason.LENGTH
        logprobs = [self._logprob(request, t, position + i) for i, t in enumerate(tokens)]
        kept = logprobs if request.logprobs is not None else ()
        assert run.part is not None, "it was never admitted"
        share = self._sharing.add_up(run.part, self._clock())
        return TokenOut(choice, position, tokens, kept, finish, matched, share)

    def next_token(self, request: EngineRequest, choice: int, position: int) -> int:
        """What it says at a position of a sample's output."""
        if self._script is not None:
            script = self._script
            tokens = script(request, choice) if callable(script) else script
            if position < len(tokens):
                return tokens[position]
            return min(self.config.eos_token_ids)
        sampled = request.sampling.temperature > 0
        key = (request.sampling.seed, choice) if sampled else (0, 0)
        raw = pack_tokens(request.prompt) + repr((*key, position)).encode()
        return self.config.alphabet[xxhash.xxh3_64_intdigest(raw) % len(self.config.alphabet)]

    def _logprob(self, request: EngineRequest, token: int, position: int) -> Logprob:
        logprob = -(1 + (token * 31 + position * 17) % 64) / 64
        others = [t for t in self.config.alphabet if t != token][: max(request.logprobs or 0, 0)]
        top = [(token, logprob), *((t, logprob - 1 - i) for i, t in enumerate(others))]
        return Logprob(token, logprob, tuple(top[: request.logprobs]))

    def _chain(self, tokens: Sequence[int], request: EngineRequest) -> list[int]:
        return chain(pack_tokens(tokens), request.chain_start, self.config.block_tokens)

    def _leave(self, run: _Run) -> None:
        if run.part is not None:
            self._sharing.leave(run.part, self._clock())
        self._running.pop(run.request.request_id, None)
        self._waiting.pop(run.request.request_id, None)
        self.cache.release(run.held)
        run.held = []
        self._gate.poke()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise EngineFailed(self._failure)
