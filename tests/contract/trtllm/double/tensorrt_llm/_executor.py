"""The double's engine: admits, prefills, decodes several tokens a step, tells events and figures.

A next token is a function of all tokens before it (and of the seed, when sampled), so a request
that goes on from its own output says what it would have said. ``Steering`` is what tests pull.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tensorrt_llm._cache import BlockCache, EventBuffer, Node
from tensorrt_llm._classes import Logprob, RequestError, is_greedy, perf_metrics
from tensorrt_llm._results import IterationResult, RequestOutput, Response

Script = Callable[[Sequence[int]], int]


@dataclass
class Request:
    """A submitted request, as it was submitted."""

    id: int
    prompt: list[int]
    params: Any
    cache_salt: str | None
    lora: Any
    trace_headers: Any
    scheduling: Any
    output: RequestOutput | None = None
    said: list[int] = field(default_factory=list)
    held: list[Node] = field(default_factory=list)
    private: int = 0
    cached: int = 0
    iterations: int = 0
    drafted: int = 0
    accepted: int = 0
    aborted: bool = False
    late: str | None = None
    arrived: float = field(default_factory=time.monotonic)
    scheduled: float = 0.0
    first: float = 0.0

    @property
    def salt(self) -> str:
        return f"{self.cache_salt}|{self.lora.lora_int_id if self.lora else None}"


@dataclass
class Steering:
    """What tests pull. ``requests`` keeps what was submitted."""

    script: Script | None = None
    alphabet: Sequence[int] = range(97, 123)
    held: bool = False
    late_stop: bool = False
    ignores_aborts: bool = False
    no_metrics: bool = False
    stalled: bool = False
    fails: list[Exception] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)


class Executor:
    """Runs requests, on the loop of whoever iterates or step by step."""

    def __init__(self, args: Any, draft_len: int, control: Path | None) -> None:
        kv = args.kv_cache_config
        self.args, self.draft_len, self.control = args, draft_len, control
        self.steering = Steering()
        has_events = kv.enable_block_reuse and kv.event_buffer_max_size > 0
        self.events = EventBuffer(
            kv.event_buffer_max_size if has_events else 0, args.max_seq_len or 4096
        )
        capacity = (kv.max_tokens or 1 << 16) // kv.tokens_per_block
        self.cache = BlockCache(
            capacity, kv.tokens_per_block, self.events, partial=kv.enable_partial_reuse,
            host_capacity=(kv.host_cache_size or 0) >> 20,
        )  # fmt: skip
        self.stats: deque[object] = deque(maxlen=args.max_stats_len)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.iteration = 0
        self.is_shut_down = False
        self.event_results: IterationResult | None = None
        self.stat_results: IterationResult | None = None
        self._wake: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def submit(self, request: Request) -> None:
        request.id = len(self.steering.requests) + 1
        self.steering.requests.append(request)
        request.output = RequestOutput(_made_by=(request, self))
        self.waiting.append(request)
        for results in (self.event_results, self.stat_results):
            if results is not None:
                results.mark_undone()
        if request.output.aqueue is not None:
            self._start()

    def abort_request(self, request_id: int) -> None:
        self.steering.aborted.append(request_id)
        if not self.steering.ignores_aborts:
            for request in [*self.waiting, *self.running]:
                request.aborted = request.aborted or request.id == request_id
        self.poke()

    def poke(self) -> None:
        if self._wake is not None:
            self._wake.set()

    def shutdown(self) -> None:
        self.is_shut_down = True
        if self._task is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    def take_events(self) -> list[object]:
        taken = list(self.events.events)
        self.events.events.clear()
        return list(taken)

    def take_stats(self) -> list[object]:
        taken = list(self.stats)
        self.stats.clear()
        return taken

    def _start(self) -> None:
        if self._task is None:
            self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
            self._task = self._loop.create_task(self._run())
        self.poke()

    async def _run(self) -> None:
        assert self._wake is not None
        while True:
            await asyncio.sleep(0)
            idle = not self.waiting and not self.running
            self._obey()
            if idle or self.steering.held or self.steering.stalled:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                self.step()
            except Exception as error:  # noqa: BLE001 - a defect of ours: nobody may wait for it
                self._fail(error)

    def _obey(self) -> None:
        """Do what a file tells a double in another process: drop so many events, or crash."""
        for name in ("drop", "crash") if self.control is not None else ():
            file = self.control / name  # type: ignore[operator]
            if file.exists() and name == "drop":
                self.events.drop += int(file.read_text())
                file.unlink()
            elif file.exists():
                self.steering.fails.append(RuntimeError("CUDA error: an illegal access"))
                file.unlink()

    def step(self) -> None:
        """One iteration."""
        started = time.monotonic()
        self._obey()
        if self.steering.fails:
            self._fail(self.steering.fails.pop(0))
        context = self._admit()
        generating = len(self.running)
        for request in list(self.running):
            self._advance(request)
        self.iteration += 1
        if self.args.enable_iter_perf_stats:
            self._tell_stats(time.monotonic() - started, context, generating)
        for results in (self.event_results, self.stat_results):
            if results is not None:
                results.notify()

    def _fail(self, error: Exception) -> None:
        """One request with a RequestError; everything, and the engine itself, with anything else."""
        victims = [*self.running, *self.waiting]
        if isinstance(error, RequestError):
            victims = victims[:1]
        else:
            self.is_shut_down = True
        for request in victims:
            assert request.output is not None
            request.output.put(error)
            self._leave(request)
        self.waiting = [r for r in self.waiting if r not in victims]

    def _admit(self) -> int:
        computed = 0
        while self.waiting and len(self.running) < self.args.max_batch_size:
            request = self.waiting[0]
            if not request.aborted:
                found, cached = (
                    self.cache.match(request.prompt, request.salt)
                    if self.args.kv_cache_config.enable_block_reuse
                    else ([], 0)
                )
                size = len(request.prompt) + request.params.max_tokens
                need = -(-size // self.cache.block) - len(found)
                if not self.cache.can_allocate(need, found):
                    break
                self.cache.hold(found)
                self.cache.allocate(need)
                request.held, request.cached, request.private = found, cached, need
                computed += len(request.prompt) - cached
            request.scheduled = time.monotonic()
            self.running.append(self.waiting.pop(0))
        return computed

    def _advance(self, request: Request) -> None:
        if request.aborted:
            return self._say(request, [], "cancelled")
        if request.late is not None:
            return self._say(request, [], request.late)
        request.iterations += 1
        is_first = not request.said
        tokens, reason = self._draw(request, 1 if is_first else self._accepted(request))
        request.said += tokens
        if is_first:
            request.first = time.monotonic()
            self._keep(request, request.prompt, ends=False)
        if reason == "STOP_WORDS" and self.steering.late_stop:
            request.late, reason = reason, None
        return self._say(request, tokens, reason)

    def _accepted(self, request: Request) -> int:
        if not self.draft_len:
            return 1
        accepted = self._digest([*request.prompt, *request.said], "drafts") % (self.draft_len + 1)
        request.drafted += self.draft_len
        request.accepted += accepted
        return 1 + accepted

    def _draw(self, request: Request, count: int) -> tuple[list[int], str | None]:
        p = request.params
        tokens: list[int] = []
        for _ in range(count):
            position = len(request.said) + len(tokens)
            token = self.next_token([*request.prompt, *request.said, *tokens], p)
            tokens.append(token)
            if token == p.end_id and not p.ignore_eos and position >= (p.min_tokens or 0):
                return tokens, "stop"  # the end token stays in
            if token in (p.stop_token_ids or ()):
                return tokens, "STOP_WORDS"
            if position + 1 >= p.max_tokens:
                return tokens, "length"
        return tokens, None

    def next_token(self, before: Sequence[int], params: Any) -> int:
        if self.steering.script is not None:
            return self.steering.script(before)
        seed = "greedy" if is_greedy(params) else f"seed {params.seed or 0}"
        return self.steering.alphabet[self._digest(before, seed) % len(self.steering.alphabet)]

    def _digest(self, tokens: Sequence[int], what: str) -> int:
        raw = blake2b(f"{what}|{list(tokens)}".encode(), digest_size=6).digest()
        return int.from_bytes(raw, "little")

    def _keep(self, request: Request, tokens: Sequence[int], *, ends: bool) -> None:
        if not self.args.kv_cache_config.enable_block_reuse:
            return
        before = self.cache.private
        chain = self.cache.store(tokens, request.salt, ends=ends)
        request.private -= before - self.cache.private
        new = [node for node in chain if node not in request.held]
        self.cache.hold(new)
        request.held += new

    def _say(self, request: Request, tokens: list[int], reason: str | None) -> None:
        assert request.output is not None
        logprobs = [self._logprobs(t, request.params) for t in tokens]
        if request.params.logprobs is None:
            logprobs = []
        request.output.put(
            Response(
                tokens,
                logprobs,
                reason=reason,
                is_last=reason is not None,
                metrics=self._metrics(request, done=reason is not None),
                cached_tokens=request.cached,
                iterations=request.iterations,
            )
        )
        if reason is not None:
            if reason != "cancelled":
                self._keep(request, [*request.prompt, *request.said][:-1], ends=True)
            self._leave(request)

    def _leave(self, request: Request) -> None:
        if request in self.running:
            self.running.remove(request)
            self.cache.release(request.held)
            self.cache.private -= request.private

    def _logprobs(self, token: int, params: Any) -> dict[int, Logprob]:
        others = [t for t in self.steering.alphabet if t != token][: params.logprobs or 0]
        told = {token: Logprob(-0.5, 1)} | {
            t: Logprob(-1.0 - i, 2 + i) for i, t in enumerate(others)
        }
        return dict(reversed(list(told.items())))

    def _metrics(self, request: Request, *, done: bool) -> Any:
        if not request.params.return_perf_metrics or self.steering.no_metrics:
            return None
        at = {
            "arrival_time": request.arrived, "first_scheduled_time": request.scheduled,
            "first_token_time": request.first, "last_token_time": time.monotonic() if done else 0,
        }  # fmt: skip
        values: dict[str, object] = {
            f"timing_metrics.{name}": timedelta(seconds=value) for name, value in at.items()
        }
        values["speculative_decoding.total_draft_tokens"] = request.drafted
        values["speculative_decoding.total_accepted_draft_tokens"] = request.accepted
        return perf_metrics(values)

    def _tell_stats(self, seconds: float, context: int, generating: int) -> None:
        batch = {"numCtxTokens": context, "numGenRequests": generating, "numPausedRequests": 0}
        cache = {
            "maxNumBlocks": self.cache.capacity,
            "usedNumBlocks": self.cache.capacity - self.cache.free,
        }
        drafts = {}
        if self.draft_len:
            made = [
                sum(r.drafted for r in self.steering.requests),
                sum(r.accepted for r in self.steering.requests),
            ]
            drafts["specDecodingStats"] = {"numDraftTokens": made[0], "numAcceptedTokens": made[1]}
        self.stats.append(
            {
                **drafts,
                "iter": self.iteration,
                "iterLatencyMS": seconds * 1000,
                "numActiveRequests": generating,
                "numQueuedRequests": len(self.waiting),
                "inflightBatchingStats": batch,
                "kvCacheStats": cache,
            }
        )


def control_folder() -> Path | None:
    """Where another process finds its orders."""
    folder = os.environ.get("TENSORRT_LLM_DOUBLE")
    return Path(folder) if folder else None
