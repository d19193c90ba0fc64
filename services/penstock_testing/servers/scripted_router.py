"""An InferenceService that answers from a text written down beforehand, one word a token.

A real gRPC server: what a gateway meets is the true contract, with true errors and cancellation.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

from penstock.common.v1 import tokens_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2, inference_service_pb2_grpc
from penstock_core.blocks import pack_tokens
from penstock_core.errors import ModelNotFound, NotSupported, PenstockError
from penstock_core.requests.validation import check_request
from penstock_core.rpc.interceptors import ServerInterceptor
from penstock_core.rpc.server import RpcServer
from penstock_core.security.auth import KeyRing

MODEL = "penstock-demo"
CACHED_TOKENS = 32
ACCEPTED_TOKENS = 2
DRAFTED_TOKENS = 3
PROMPT_TOKENS = 40
LOGPROB = -0.5
SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Request = generate_pb2.GenerateRequest
Event = generate_pb2.GenerateResponse


@dataclass
class Script:
    """What Generate does.

    Attributes:
        pieces: the tokens of every sample.
        error: raised instead of token number ``error_at`` (0: before the first).
        hang_at: waits for ever instead of that token.
        models: names that are served.
    """

    pieces: Sequence[bytes] = (b"The", b" quick", b" brown", b" fox")
    error: PenstockError | None = None
    error_at: int = 0
    hang_at: int | None = None
    models: Sequence[str] = (MODEL, "org/hub-model")
    requests: list[Request] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    is_running: asyncio.Event = field(default_factory=asyncio.Event)
    was_cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    resume: asyncio.Event = field(default_factory=asyncio.Event)


class ScriptedRouter(inference_service_pb2_grpc.InferenceServiceServicer):
    """Serves by a script that a test may change between requests."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def Generate(  # noqa: N802 - gRPC's name
        self, request: Request, context: _Context
    ) -> AsyncIterator[Event]:
        """As scripted."""
        script = self._script
        script.requests.append(request)
        script.metadata.append({k: str(v) for k, v in context.invocation_metadata() or ()})
        check_request(request)
        self._check_model(request.model)
        try:
            yield Event(started=_started(request))
            for token, piece in enumerate((*script.pieces, b"")):
                await self._hold(token)
                if not piece or token == _max_tokens(request):
                    break
                for event in _deltas(request, script.pieces, token):
                    yield event
            for event in _ending(request, script.pieces):
                yield event
        except (asyncio.CancelledError, GeneratorExit):  # while waiting, or while sending
            script.was_cancelled.set()
            raise

    async def ListModels(  # noqa: N802
        self, request: inference_service_pb2.ListModelsRequest, context: _Context
    ) -> inference_service_pb2.ListModelsResponse:
        """All models."""
        models = [_model(name) for name in sorted(self._script.models)]
        return inference_service_pb2.ListModelsResponse(models=models)

    async def GetModel(  # noqa: N802
        self, request: inference_service_pb2.GetModelRequest, context: _Context
    ) -> inference_service_pb2.GetModelResponse:
        """One model."""
        self._check_model(request.model)
        return inference_service_pb2.GetModelResponse(model=_model(request.model))

    async def Embed(  # noqa: N802
        self, request: inference_service_pb2.EmbedRequest, context: _Context
    ) -> inference_service_pb2.EmbedResponse:
        """Not scripted."""
        raise NotSupported("no embeddings here")

    async def Tokenize(  # noqa: N802
        self, request: inference_service_pb2.TokenizeRequest, context: _Context
    ) -> inference_service_pb2.TokenizeResponse:
        """Not scripted."""
        raise NotSupported("no tokenizer here")

    async def Detokenize(  # noqa: N802
        self, request: inference_service_pb2.DetokenizeRequest, context: _Context
    ) -> inference_service_pb2.DetokenizeResponse:
        """Not scripted."""
        raise NotSupported("no tokenizer here")

    def _check_model(self, name: str) -> None:
        if name not in self._script.models:
            raise ModelNotFound(f"the model {name!r} does not exist")

    async def _hold(self, token: int) -> None:
        if self._script.hang_at == token:
            self._script.is_running.set()
            await self._script.resume.wait()
        if self._script.error is not None and self._script.error_at == token:
            raise self._script.error


@asynccontextmanager
async def running_router(script: Script, keys: KeyRing | None = None) -> AsyncIterator[str]:
    """Serve the script; yields the address."""
    server = RpcServer(
        ServerInterceptor(keys or KeyRing.open_to_all()),
        [
            lambda s: inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(
                ScriptedRouter(script), s
            )
        ],
        [SERVICE],
    )
    port = server.bind("127.0.0.1:0")
    await server.start()
    await server.serve()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def _max_tokens(request: Request) -> int | None:
    return request.stop.max_tokens if request.stop.HasField("max_tokens") else None


def _samples(request: Request) -> range:
    return range(request.sampling.n or 1)


def _started(request: Request) -> generate_pb2.Started:
    return generate_pb2.Started(
        request_id=request.request_id,
        worker_id="worker-1",
        epoch="e1",
        decision_id="dec_1",
        model=request.model,
        prompt_tokens=PROMPT_TOKENS,
        cached_tokens=CACHED_TOKENS,
        seed=request.sampling.seed,
    )


def _deltas(request: Request, pieces: Sequence[bytes], token: int) -> Iterator[Event]:
    """Token number ``token`` of every sample; text as an incremental detokenizer gives it."""
    before = b"".join(pieces[:token]).decode(errors="ignore")
    text = b"".join(pieces[: token + 1]).decode(errors="ignore")[len(before) :]
    for index in _samples(request):
        if token == 0 and request.output.echo:
            echo = generate_pb2.Delta(choice_index=index, text=request.text, is_echo=True)
            yield Event(delta=echo)
        delta = generate_pb2.Delta(
            choice_index=index,
            first_position=token,
            tokens=tokens_pb2.TokenIds(ids=pack_tokens([token])),
            text=text,
        )
        if request.output.HasField("logprobs"):
            delta.logprobs.append(_logprob(pieces[token], token, request.output.logprobs))
        yield Event(delta=delta)


def _logprob(piece: bytes, token: int, top: int) -> tokens_pb2.TokenLogprob:
    alternatives = [
        tokens_pb2.TopLogprob(
            token_id=token + i, logprob=LOGPROB - i, token_bytes=piece if i == 0 else b"alt%d" % i
        )
        for i in range(top)
    ]
    return tokens_pb2.TokenLogprob(
        token_id=token, logprob=LOGPROB, token_bytes=piece, top=alternatives
    )


def _ending(request: Request, pieces: Sequence[bytes]) -> Iterator[Event]:
    limit = _max_tokens(request)
    is_cut = limit is not None and limit < len(pieces)
    count = limit if is_cut and limit is not None else len(pieces)
    reason = generate_pb2.FINISH_REASON_LENGTH if is_cut else generate_pb2.FINISH_REASON_STOP
    for index in _samples(request):
        finished = generate_pb2.Finished(choice_index=index, reason=reason, completion_tokens=count)
        if request.stop.strings and not is_cut:
            finished.matched_string = request.stop.strings[0]
        yield Event(finished=finished)
    usage = usage_pb2.Usage(
        prompt_tokens=PROMPT_TOKENS,
        completion_tokens=count * len(_samples(request)),
        cached_tokens=CACHED_TOKENS,
        drafted_tokens=DRAFTED_TOKENS,
        accepted_draft_tokens=ACCEPTED_TOKENS,
    )
    timing = usage_pb2.Timing(ttft_s=0.01, tpot_s=0.002, total_s=0.02)
    yield Event(completed=generate_pb2.Completed(usage=usage, timing=timing))


def _model(name: str) -> inference_service_pb2.Model:
    return inference_service_pb2.Model(
        name=name,
        revision="r1",
        max_context_tokens=2048,
        vocab_size=1000,
        block_tokens=32,
        has_chat_template=True,
        created_unix_s=1_700_000_000,
    )
