"""One request from admission to its last message.

A pump takes the engine's outputs as they come, so that a slow reader never slows the engine; the
responses go out when the outbox says. What waits in between is bounded by the request's tokens.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import cast

from penstock.common.v1 import usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.errors import PenstockError
from penstock_core.security.auth import DEFAULT_TENANT
from penstock_engine.api import (
    NO_SHARE,
    Admitted,
    Engine,
    EngineOutput,
    FinishReason,
    RequestDone,
    TokenOut,
)
from penstock_worker.accounting.accounts import Accounts, Charge
from penstock_worker.accounting.ledger import Ledger
from penstock_worker.accounting.report import Outcome, Progress, Reporter
from penstock_worker.generation.outbox import Outbox, Paces
from penstock_worker.generation.sample import Ends, Sample
from penstock_worker.generation.summary import (
    completed,
    echoes,
    over_all_attempts,
    price_over_all_attempts,
    timing,
    usage,
)
from penstock_worker.intake.plan import Plan, ServedModel

_Response = generate_pb2.GenerateResponse


@dataclass(frozen=True, slots=True)
class Services:
    """What every generation of a worker uses."""

    engine: Engine
    model: ServedModel
    ledger: Ledger
    reporter: Reporter
    paces: Paces
    accounts: Accounts


class Generation:
    """Runs one plan. ``responses`` is iterated once, and closed to end it early."""

    def __init__(self, plan: Plan, services: Services, progress: Progress) -> None:
        self._plan = plan
        self._services = services
        self._progress = progress
        self._outbox = Outbox(services.paces.of(plan.request), services.paces.ticks)
        self._events: list[_Response] = []
        self._done: RequestDone | None = None
        self._share = NO_SHARE
        self._evicted: PenstockError | None = None
        self._has_started = False
        ends = Ends.of(plan.request, plan.engine_request.max_tokens, plan.engine_request.n)
        tokenizer = services.model.tokenizer
        self._samples = [Sample(i, tokenizer, ends) for i in range(plan.engine_request.n)]
        for state in plan.request.resume.choices:
            index = state.choice_index
            self._samples[index].resume(state, plan.engine_request.emitted[index])

    def evict(self, error: PenstockError) -> None:
        """End it with an error, after what is ready was sent."""
        self._evicted = error
        self._outbox.now()

    async def responses(self) -> AsyncGenerator[_Response, None]:
        """The messages, in order: started, deltas, finished for each sample, completed.

        Raises:
            PenstockError: whatever the engine refused or failed with, or what it was evicted with.
        """
        pump = asyncio.create_task(self._pump())
        pump.add_done_callback(lambda _: self._outbox.now())
        error: str | None = "cancelled"
        try:
            while not pump.done():
                await self._outbox.ready()
                # A list, made at once: what comes while these are sent waits for the next round.
                for response in list(self._ready()):
                    yield response
                if self._evicted is not None:
                    raise self._evicted
            pump.result()
            for response in self._last():
                yield response
            error = None
        except PenstockError as failure:
            error = failure.slug
            raise
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            self._report(error)

    async def _pump(self) -> None:
        if all(sample.finished is not None for sample in self._samples):
            self._start(cached_tokens=0)  # an earlier attempt had sent every token
            return
        # The contract promises an iterator that can be closed, which AsyncIterator does not say.
        outputs = cast(
            "AsyncGenerator[EngineOutput, None]",
            self._services.engine.generate(self._plan.engine_request),
        )
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                match output:
                    case Admitted():
                        self._admitted(output)
                    case TokenOut():
                        self._take(output)
                    case RequestDone():
                        self._done, self._share = output, output.share

    def _admitted(self, output: Admitted) -> None:
        self._progress.queue_s = max(self._progress.now_s() - output.late_s, 0.0)
        self._progress.cached_tokens = output.cached_tokens
        self._services.ledger.admitted(self._plan, output)
        self._start(output.cached_tokens)
        for sample in self._samples:
            if sample.finished is not None:  # in an earlier attempt; the others go on
                self._abort_sample(sample)

    def _take(self, output: TokenOut) -> None:
        self._start(cached_tokens=0)  # one that was ended while it waited was never admitted
        if self._progress.ttft_s is None and output.finish is not FinishReason.ABORTED:
            self._progress.ttft_s = self._progress.now_s()
            self._services.ledger.prefill_done(self._plan, self._progress)
        self._share = output.share
        sample = self._samples[output.choice_index]
        if sample.take(output):
            self._abort_sample(sample)
        if self._plan.ranks:
            return  # which samples are returned is known at the end
        if sample.finished is not None:
            self._outbox.now()
        else:
            self._outbox.tokens(sample.num_pending)

    def _abort_sample(self, sample: Sample) -> None:
        self._services.engine.abort(self._plan.request_id, sample.index)

    def _start(self, cached_tokens: int) -> None:
        if self._has_started:
            return
        self._has_started = True
        info, request = self._services.model.info, self._plan.request
        started = generate_pb2.Started(
            request_id=self._plan.request_id,
            worker_id=info.worker_id,
            epoch=info.epoch,
            decision_id=self._plan.claims.decision_id,
            model=request.model,
            prompt_tokens=len(self._plan.engine_request.prompt),
            cached_tokens=cached_tokens,
            seed=self._plan.engine_request.sampling.seed,
        )
        self._events.append(_Response(started=started))
        if request.output.echo:
            self._events += echoes(self._plan, self._services.model.tokenizer)
        self._outbox.now()

    def _ready(self) -> Iterator[_Response]:
        events, self._events = self._events, []
        yield from events
        if not self._plan.ranks:
            for sample in self._samples:
                for message in sample.messages():
                    if message.HasField("delta"):
                        message.delta.spent.CopyFrom(self._cost())
                    yield message

    def _cost(self) -> usage_pb2.Cost:
        return self._services.accounts.price.cost(self._share.prefill_s, self._share.decode_s)

    def _last(self) -> Iterator[_Response]:
        yield from self._ready()
        returned = self._samples
        if self._plan.ranks:
            ranked = sorted(self._samples, key=lambda s: s.mean_logprob, reverse=True)
            returned = ranked[: self._plan.num_returned]
        for index, sample in enumerate(returned):
            yield from sample.messages(index)
        figures = over_all_attempts(self._plan, self._usage(), self._timing(), self._samples)
        summary = completed(self._plan, *figures, returned)
        cost = price_over_all_attempts(self._plan, self._cost())
        if cost is not None:
            summary.cost.CopyFrom(cost)
        yield _Response(completed=summary)

    def _usage(self) -> usage_pb2.Usage:
        return usage(self._plan, self._samples, self._done)

    def _timing(self) -> usage_pb2.Timing:
        longest = max(sample.num_new_tokens for sample in self._samples)
        return timing(self._progress, longest, self._done, self._share)

    def _charge(self, prompt_tokens: int, new_tokens: int) -> None:
        """What this attempt took; one that the engine never admitted took nothing."""
        if self._progress.queue_s is None:
            return
        tenant, model = self._plan.claims.tenant or DEFAULT_TENANT, self._plan.request.model
        charge = Charge(tenant, model, self._share, prompt_tokens, new_tokens)
        self._services.accounts.charge(charge)

    def _report(self, error: str | None) -> None:
        finished = [s.finished for s in self._samples if s.finished is not None]
        aborted = error is not None or any(
            f.reason == generate_pb2.FINISH_REASON_ABORTED for f in finished
        )
        used = self._usage()
        new_tokens = sum(sample.num_new_tokens for sample in self._samples)
        self._services.ledger.finished(self._plan, new_tokens, used, aborted=aborted)
        self._charge(used.prompt_tokens, new_tokens)
        names = tuple(
            generate_pb2.FinishReason.Name(f.reason).removeprefix("FINISH_REASON_").lower()
            for f in finished
        )
        outcome = Outcome(used, self._timing(), names, error)
        self._services.reporter.ended(self._plan, self._progress, outcome)
