"""From a wire request to a plan: everything is checked and decided before the engine is asked."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.common.v1 import lease_pb2
from penstock.inference.v1 import generate_pb2
from penstock.worker.v1 import state_pb2
from penstock_core.blocks import TOKEN_BYTES, chain_start, unpack_tokens
from penstock_core.errors import InvalidRequest, ModelNotFound
from penstock_core.ids import new_id
from penstock_core.requests.model_names import Catalogue, Named, Served
from penstock_core.requests.tool_calls import hold_to_tool_call
from penstock_core.requests.validation import check_fit, check_request, check_token_ids
from penstock_engine.api import EngineInfo, EngineRequest
from penstock_text.chat import ChatTemplate
from penstock_text.prompt import encode_prompt
from penstock_text.tokenizer import Tokenizer
from penstock_worker import translate
from penstock_worker.intake.lease import LeaseCheck, check_adapter


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The one model of a worker: what it says, how it reads, and who it is."""

    engine: EngineInfo
    info: state_pb2.WorkerInfo
    tokenizer: Tokenizer
    template: ChatTemplate | None

    def check_name(self, name: str) -> None:
        """Raise ModelNotFound unless the model is served under this name."""
        if name not in self.info.models:
            raise ModelNotFound(f"this worker does not serve {name!r}")

    def read_name(self, name: str, adapter: str = "") -> Named:
        """What a request means that names a model or an adapter of it.

        Raises:
            ModelNotFound: neither the model nor an adapter has this name.
            NotFound: there is no such adapter.
            InvalidRequest: two adapters are named.
        """
        served = Served(self.info.models, self.info.model_revision, self.engine.adapters)
        named = Catalogue([served]).read(name, adapter)
        self.check_name(named.model)
        return named


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that will run."""

    request: generate_pb2.GenerateRequest
    engine_request: EngineRequest
    claims: lease_pb2.LeaseClaims
    num_returned: int

    @property
    def request_id(self) -> str:
        """Its id."""
        return self.engine_request.request_id

    @property
    def ranks(self) -> bool:
        """Whether more samples are drawn than returned."""
        return self.engine_request.n > self.num_returned


class Intake:
    """Makes plans."""

    def __init__(self, model: ServedModel, leases: LeaseCheck) -> None:
        self._model = model
        self._leases = leases

    async def plan(self, request: generate_pb2.GenerateRequest) -> Plan:
        """Check a request and decide what it leaves open.

        Raises:
            InvalidRequest, PromptTooLong, ModelNotFound, NotFound, LeaseInvalid, LeaseStale
        """
        request_id = request.request_id or new_id("req")
        # Before anything that a stranger could learn from.
        claims = self._leases.claims(request, request_id)
        check_request(request)
        hold_to_tool_call(request)
        named = self._model.read_name(request.model, request.adapter)
        request.model, request.adapter = named.model, named.adapter
        check_adapter(claims, named.adapter)
        prompt = await encode_prompt(request, self._model.tokenizer, self._model.template)
        max_tokens = check_fit(len(prompt), request, self._model.engine)
        self._check_ids(request, prompt)
        num_returned = request.sampling.n or 1
        num_drawn = max(request.sampling.best_of, num_returned)
        resolved = translate.Resolved(
            request_id=request_id,
            prompt=prompt,
            max_tokens=max_tokens,
            seed=_seed(request),
            num_drawn=num_drawn,
            chain_start=self._chain_start(request, claims),
            priority=claims.priority or request.priority,
            eos_token_ids=self._model.engine.eos_token_ids | self._model.tokenizer.eos_token_ids,
            emitted=self._emitted(request, num_drawn, max_tokens),
        )
        return Plan(request, translate.engine_request(request, resolved), claims, num_returned)

    def _check_ids(self, request: generate_pb2.GenerateRequest, prompt: list[int]) -> None:
        limits = self._model.engine
        check_token_ids(prompt, limits, "tokens.ids")
        check_token_ids(list(request.stop.token_ids), limits, "stop.token_ids")
        check_token_ids(list(request.sampling.logit_bias), limits, "sampling.logit_bias")

    def _chain_start(
        self, request: generate_pb2.GenerateRequest, claims: lease_pb2.LeaseClaims
    ) -> int:
        revision, digest = self._model.info.model_revision, self._model.info.tokenizer_digest
        return chain_start(revision, digest, request.adapter, claims.cache_salt)

    def _emitted(
        self, request: generate_pb2.GenerateRequest, num_drawn: int, max_tokens: int
    ) -> Sequence[Sequence[int]]:
        """Tokens that each sample has; empty if this is a first attempt."""
        if not request.resume.choices:
            return ()
        emitted: list[list[int]] = [[] for _ in range(num_drawn)]
        seen = set()
        for position, state in enumerate(request.resume.choices):
            field = f"resume.choices[{position}]"
            raw = state.emitted.ids
            if state.choice_index >= num_drawn or state.choice_index in seen:
                raise InvalidRequest(f"{field} names no sample of its own", field=field)
            if len(raw) % TOKEN_BYTES or len(raw) // TOKEN_BYTES > max_tokens:
                raise InvalidRequest(
                    f"{field} has {len(raw)} bytes of tokens, which is no whole number of them "
                    f"or more than max_tokens, {max_tokens}",
                    field=f"{field}.emitted.ids",
                )
            seen.add(state.choice_index)
            emitted[state.choice_index] = unpack_tokens(raw)
            check_token_ids(emitted[state.choice_index], self._model.engine, f"{field}.emitted.ids")
        return emitted


def _seed(request: generate_pb2.GenerateRequest) -> int:
    if request.sampling.HasField("seed"):
        return request.sampling.seed
    return request.resume.seed if request.HasField("resume") else secrets.randbits(63)
