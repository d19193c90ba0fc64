"""From a request to what routing needs: tokens, who may serve it, hashes of its blocks."""

import time
from collections import Counter
from dataclasses import dataclass, field

from opentelemetry import trace

from penstock.common.v1 import sampling_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core import blocks
from penstock_core.errors import InvalidRequest, NotFound, NoWorker, Unavailable
from penstock_core.ids import new_id
from penstock_core.requests import validation
from penstock_core.requests.determinism import settle_response_cache
from penstock_core.requests.tool_calls import hold_to_tool_call
from penstock_core.security.auth import Principal
from penstock_core.telemetry import semconv
from penstock_core.telemetry.tracing import record_span
from penstock_router.fleet.fleet import RETRY_AFTER_S, Fleet
from penstock_router.fleet.tracked import TrackedWorker
from penstock_router.frames import WorkerFacts
from penstock_router.places import Found, Places
from penstock_router.texts import ModelText, TextLibrary, TextProblem
from penstock_text.prompt import encode_prompt

_NOBODY: frozenset[str] = frozenset()
_MAX_SALTS = 4096


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A checked request with its tokens.

    Attributes:
        request: the caller's message, with a request id.
        prompt: packed token ids of the prompt.
        prefix: the same and what an earlier attempt emitted, for looking up caches.
        workers: who serves the model with this tokenizer.
        asked: the message as it came, if its model's name leads to several places.
        excluded: why a worker of the model cannot serve this request, by worker id.
    """

    request: generate_pb2.GenerateRequest
    prompt: bytes
    prefix: bytes
    max_tokens: int
    principal: Principal
    cache_salt: int
    workers: tuple[TrackedWorker, ...]
    excluded: dict[str, str]
    asked: bytes = b""
    chains: dict[tuple[str, int], bytes] = field(default_factory=dict)

    @property
    def prefix_tokens(self) -> int:
        """Tokens whose KV a worker needs before it can go on."""
        return len(self.prefix) // blocks.TOKEN_BYTES

    @property
    def priority(self) -> "sampling_pb2.PriorityClass.ValueType":
        """The class after the tenant's limits: only the platform itself is SYSTEM."""
        asked = self.request.priority or sampling_pb2.PRIORITY_CLASS_STANDARD
        if asked == sampling_pb2.PRIORITY_CLASS_SYSTEM and not self.principal.is_service:
            return sampling_pb2.PRIORITY_CLASS_INTERACTIVE
        return asked

    @property
    def is_batch(self) -> bool:
        """Whether it gives way to everybody else."""
        return self.priority == sampling_pb2.PRIORITY_CLASS_BATCH

    def hashes(self, facts: WorkerFacts) -> bytes:
        """Packed chain hashes of all full blocks, as a worker's engine names them."""
        key = (facts.model_revision, facts.block_tokens)
        if key not in self.chains:
            start = blocks.chain_start(
                facts.model_revision, facts.tokenizer_digest, self.request.adapter, self.cache_salt
            )
            chain = blocks.chain(self.prefix, start, facts.block_tokens)
            self.chains[key] = blocks.pack_hashes(chain)
        return self.chains[key]


class Preparer:
    """Checks requests and turns their prompts into tokens."""

    def __init__(
        self, fleet: Fleet, texts: TextLibrary, cache_secret: bytes, places: Places
    ) -> None:
        self._fleet = fleet
        self._places = places
        self._texts = texts
        self._cache_secret = cache_secret
        self._salts: dict[str, int] = {}
        self._tracer = trace.get_tracer("penstock.router")

    async def prepare(
        self,
        request: generate_pb2.GenerateRequest,
        principal: Principal,
        tried: frozenset[str] = _NOBODY,
    ) -> PreparedRequest:
        """Everything that is done once a request, however often it is routed to a place.

        Raises:
            InvalidRequest: with the field that is wrong.
            ModelNotFound, NotFound: the model or the adapter does not exist.
            NoWorker: the model is known but nobody serves it now.
        """
        validation.check_request(request)
        hold_to_tool_call(request)
        settle_response_cache(request)
        request.request_id = request.request_id or new_id("req")
        named = self._places.read(request.model, request.adapter)
        request.model, request.adapter = named.model, named.adapter
        has_choice = self._places.leads_elsewhere(request.model)
        asked = request.SerializeToString() if has_choice else b""
        found = self._places.of(request, tried)
        request.model = found.model
        request.adapter = request.adapter or found.adapter
        workers = self._same_tokenizer(found.workers)
        workers = self._same_revision(workers, request.resume.model_revision)
        facts = [w.facts for w in workers if w.facts is not None]
        if request.adapter and not any(request.adapter in f.adapters for f in facts):
            raise NotFound(f"{request.model!r} has no adapter {request.adapter!r}")
        roomiest = max(facts, key=lambda f: f.max_context_tokens)
        problems = await self._tokenizer_problems(workers)
        prompt, count = await self._tokens(request, roomiest, workers)
        max_tokens = validation.check_fit(count, request, roomiest)
        emitted = max(_to_compute(request.resume), key=len, default=b"")
        return PreparedRequest(
            request=request,
            prompt=prompt,
            prefix=prompt + emitted,
            max_tokens=max_tokens,
            principal=principal,
            cache_salt=self.cache_salt(principal),
            workers=tuple(workers),
            excluded=_unfit(workers, request, count) | problems,
            asked=asked,
        )

    async def elsewhere(self, prepared: PreparedRequest, tried: frozenset[str]) -> PreparedRequest:
        """The request as it was asked, before the next place that it may go to.

        Raises as ``prepare`` does.
        """
        if not prepared.asked:
            return prepared
        request = generate_pb2.GenerateRequest.FromString(prepared.asked)
        return await self.prepare(request, prepared.principal, tried)

    async def resumed(
        self, prepared: PreparedRequest, state: generate_pb2.ResumeState
    ) -> PreparedRequest:
        """The same request with what was emitted, before whoever serves the model by now.

        Raises as ``prepare`` does.
        """
        request = generate_pb2.GenerateRequest()
        request.CopyFrom(prepared.request)
        request.tokens.ids = prepared.prompt
        request.resume.CopyFrom(state)
        return await self.prepare(request, prepared.principal)

    async def text_of(self, model: str) -> ModelText:
        """A model's tokenizer and template. Raises as ``prepare`` does."""
        return await self._text(self.place_of(model).workers)

    def place_of(self, model: str, request_id: str = "") -> Found:
        """Who serves what a name means, with the tokenizer that most of them have.

        Raises as ``prepare`` does.
        """
        named = self._places.read(model)
        asked = generate_pb2.GenerateRequest(request_id=request_id, model=named.model)
        found = self._places.of(asked)
        workers = self._same_tokenizer(found.workers)
        return Found(found.model, workers, named.adapter or found.adapter)

    def cache_salt(self, principal: Principal) -> int:
        """What keeps a tenant's blocks apart from others'."""
        salt = self._salts.get(principal.tenant)
        if salt is None:
            if len(self._salts) >= _MAX_SALTS:
                self._salts.clear()
            salt = blocks.cache_salt(self._cache_secret, principal.tenant)
            self._salts[principal.tenant] = salt
        return salt

    async def _tokens(
        self,
        request: generate_pb2.GenerateRequest,
        facts: WorkerFacts,
        workers: list[TrackedWorker],
    ) -> tuple[bytes, int]:
        if request.WhichOneof("prompt") == "tokens":
            ids = blocks.unpack_tokens(request.tokens.ids)
            packed = request.tokens.ids
        else:
            text = await self._text(workers)
            began = time.time()
            ids = await encode_prompt(request, text.tokenizer, text.template)
            packed = blocks.pack_tokens(ids)
            attributes = {semconv.INPUT_TOKENS: len(ids)}
            record_span(self._tracer, semconv.SPAN_TOKENIZE, began, time.time(), attributes)
        validation.check_token_ids(ids, facts, validation.prompt_field(request))
        return packed, len(ids)

    async def _text(self, workers: list[TrackedWorker]) -> ModelText:
        problem = "nobody said where it is"
        for facts in {w.facts for w in workers if w.facts is not None}:
            found = await self._texts.get(facts)
            if isinstance(found, ModelText):
                return found
            problem = found.why
        raise Unavailable(f"text cannot be tokenized: {problem}", retry_after_s=RETRY_AFTER_S)

    async def _tokenizer_problems(self, workers: list[TrackedWorker]) -> dict[str, str]:
        """Workers whose tokens mean something else than they say."""
        problems = {}
        for worker in workers:
            found = await self._texts.get(worker.facts) if worker.facts is not None else None
            if isinstance(found, TextProblem) and found.is_mismatch:
                problems[worker.worker_id] = found.why
        return problems

    def _same_tokenizer(self, workers: list[TrackedWorker]) -> list[TrackedWorker]:
        """Those who agree with most of the others on what a token is."""
        known = [(w, w.facts.tokenizer_digest) for w in workers if w.facts is not None]
        by_digest = Counter([digest for _, digest in known])
        if not by_digest:
            raise NoWorker("no worker is known well enough yet", retry_after_s=RETRY_AFTER_S)
        most = max(by_digest, key=lambda d: (by_digest[d], d))
        return [worker for worker, digest in known if digest == most]

    def _same_revision(self, workers: list[TrackedWorker], revision: str) -> list[TrackedWorker]:
        """Those that would say what an earlier attempt would have said, if one of them can."""
        same = [w for w in workers if w.facts is not None and w.facts.model_revision == revision]
        return same if self._fleet.any_open(same) else workers


def _to_compute(resume: generate_pb2.ResumeState) -> list[bytes]:
    """Emitted tokens of the samples that go on: a worker needs their KV."""
    return [c.emitted.ids for c in resume.choices if not c.finish_reason]


def _unfit(
    workers: list[TrackedWorker], request: generate_pb2.GenerateRequest, prompt_tokens: int
) -> dict[str, str]:
    reasons = {}
    for worker in workers:
        facts = worker.facts
        if facts is None:
            continue
        try:
            validation.check_fit(prompt_tokens, request, facts)
        except InvalidRequest:
            reasons[worker.worker_id] = f"its context has {facts.max_context_tokens} tokens"
        if request.adapter and request.adapter not in facts.adapters:
            reasons[worker.worker_id] = f"it has no adapter {request.adapter}"
    return reasons
