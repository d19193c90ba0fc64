"""Bad input on a worker: each has its own clear, typed answer, and the worker goes on serving."""

from collections.abc import Callable

import grpc
import pytest

from penstock.common.v1 import chat_pb2, lease_pb2, tokens_pb2
from penstock.inference.v1 import inference_service_pb2 as inference_pb2
from penstock.inference.v1.generate_pb2 import ChoiceState, GenerateRequest, ResumeState
from penstock_core.blocks import pack_tokens, unpack_tokens
from penstock_core.errors import (
    InvalidRequest,
    LeaseInvalid,
    LeaseStale,
    MalformedMessage,
    ModelNotFound,
    NotFound,
    PenstockError,
    PromptTooLong,
)
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security.leases import sign
from penstock_testing.callers.calls import Calls, calls_to
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.engines.models import EOS_TOKEN
from penstock_testing.servers.worker import RunningWorker, running_worker

GENERATE = "/penstock.inference.v1.InferenceService/Generate"
CONTEXT = 4096
SECRET = b"shared"


def good(**fields: object) -> GenerateRequest:
    request = GenerateRequest(**({"model": "fake", "text": "hello"} | fields))  # type: ignore[arg-type]
    if not request.stop.HasField("max_tokens"):
        request.stop.max_tokens = 3
    return request


def tokens(*ids: int) -> tokens_pb2.TokenIds:
    return tokens_pb2.TokenIds(ids=pack_tokens(ids))


def resumed(*choices: ChoiceState) -> ResumeState:
    return ResumeState(choices=choices, attempt=1)


BAD = {
    "empty text": (good(text=""), InvalidRequest, "text"),
    "no prompt": (GenerateRequest(model="fake"), InvalidRequest, "prompt"),
    "empty tokens": (good(text=None, tokens=tokens()), InvalidRequest, "tokens.ids"),
    "half a token": (
        good(text=None, tokens=tokens_pb2.TokenIds(ids=b"\0\0\0")), InvalidRequest, "tokens.ids",
    ),
    "unknown token": (good(text=None, tokens=tokens(257)), InvalidRequest, "tokens.ids"),
    "empty chat": (good(text=None, chat=chat_pb2.ChatPrompt()), InvalidRequest, "chat.messages"),
    "no model": (good(model=""), InvalidRequest, "model"),
    "unknown model": (good(model="other"), ModelNotFound, ""),
    "unknown adapter": (good(adapter="lora"), NotFound, ""),
    "negative max_tokens": (good(stop={"max_tokens": -1}), InvalidRequest, "stop.max_tokens"),
    "zero max_tokens": (good(stop={"max_tokens": 0}), InvalidRequest, "stop.max_tokens"),
    "unknown stop token": (good(stop={"token_ids": [999]}), InvalidRequest, "stop.token_ids"),
    "empty stop string": (good(stop={"strings": [""]}), InvalidRequest, "stop.strings[0]"),
    "unknown biased token": (
        good(sampling={"logit_bias": {999: 1.0}}), InvalidRequest, "sampling.logit_bias",
    ),
    "NaN temperature": (
        good(sampling={"temperature": float("nan")}), InvalidRequest, "sampling.temperature",
    ),
    "best_of below n": (good(sampling={"n": 2, "best_of": 1}), InvalidRequest, "sampling.best_of"),
    "unsafe id": (good(request_id="a b"), InvalidRequest, "request_id"),
    "resume of no sample": (
        good(resume=resumed(ChoiceState(choice_index=1))), InvalidRequest, "resume.choices[0]",
    ),
    "resume of one sample twice": (
        good(resume=resumed(ChoiceState(), ChoiceState())), InvalidRequest, "resume.choices[1]",
    ),
    "resume beyond max_tokens": (
        good(resume=resumed(ChoiceState(emitted=tokens(1, 2, 3, 4)))),
        InvalidRequest, "resume.choices[0].emitted.ids",
    ),
    "resume of unknown tokens": (
        good(resume=resumed(ChoiceState(emitted=tokens(999)))),
        InvalidRequest, "resume.choices[0].emitted.ids",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_each_mistake_is_named_and_nothing_breaks(name: str) -> None:
    request, kind, field = BAD[name]
    engine = FakeEngine()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        with pytest.raises(PenstockError) as caught:
            await calls.generate(request)

        assert engine.requests == [], "the engine was asked before the request was checked"
        assert (await calls.generate(good())).text()

    assert type(caught.value) is kind
    if isinstance(caught.value, InvalidRequest):
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "max_tokens", "field"),
    [("x" * 4000, 97, "stop.max_tokens"), ("x" * 4096, 1, "text"), ("x" * 1_000_000, 1, "text")],
)
async def test_what_exceeds_the_context_is_told_with_both_numbers(
    text: str, max_tokens: int, field: str
) -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        with pytest.raises(PromptTooLong) as caught:
            await calls.generate(good(text=text, stop={"max_tokens": max_tokens}))
        assert (await calls.generate(good())).text()

    assert str(len(text)) in caught.value.message
    assert str(CONTEXT) in caught.value.message
    assert caught.value.field == field
    assert caught.value.metadata == {
        "prompt_tokens": str(len(text)),
        "max_tokens": str(max_tokens),
        "max_context_tokens": str(CONTEXT),
    }


@pytest.mark.parametrize(
    "raw", [b"\x12\x04fake\x1a\x03\xff\xfe\xfd", b"\x1a\x7fshort", b"\xff\xff\xff\xff"]
)
async def test_bytes_that_are_no_message_are_an_invalid_argument(raw: bytes) -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        send: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = calls.channel.unary_stream(
            GENERATE, request_serializer=bytes
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in send(raw):
                pass
        assert (await calls.generate(good())).text()

    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(from_rpc_error(caught.value), MalformedMessage)


def claims(worker: RunningWorker, **changes: object) -> lease_pb2.LeaseClaims:
    fields = {
        "worker_id": worker.info.worker_id,
        "epoch": worker.info.epoch,
        "request_id": "r",
        "decision_id": "dec_1",
        "cache_salt": 5,
        "expires_unix_ms": 2**62,
    }
    return lease_pb2.LeaseClaims(**(fields | changes))  # type: ignore[arg-type]


BAD_LEASES: dict[str, tuple[Callable[[RunningWorker], lease_pb2.Lease | None], type]] = {
    "none": (lambda _: None, LeaseInvalid),
    "forged": (lambda w: sign(claims(w), b"guess"), LeaseInvalid),
    "another worker's": (lambda w: sign(claims(w, worker_id="other"), SECRET), LeaseInvalid),
    "another request's": (lambda w: sign(claims(w, request_id="other"), SECRET), LeaseInvalid),
    "expired": (lambda w: sign(claims(w, expires_unix_ms=1), SECRET), LeaseStale),
    "from before a restart": (lambda w: sign(claims(w, epoch="old"), SECRET), LeaseStale),
}


@pytest.mark.parametrize("name", BAD_LEASES)
async def test_leases_that_do_not_hold_are_refused(name: str) -> None:
    make, kind = BAD_LEASES[name]
    async with running_worker(lease_secret=SECRET) as worker, calls_to(worker.endpoint) as calls:
        with pytest.raises(PenstockError) as caught:
            await calls.generate(good(request_id="r", lease=make(worker)))

    assert type(caught.value) is kind


async def test_a_lease_that_holds_lets_in_and_salts_the_cache() -> None:
    engine = FakeEngine()
    async with (
        running_worker(engine, lease_secret=SECRET) as worker,
        calls_to(worker.endpoint) as calls,
    ):
        transcripts = []
        for number, salt in enumerate((5, 5, 6)):
            lease = sign(claims(worker, request_id=f"r{number}", cache_salt=salt), SECRET)
            request = good(text="x" * 100, request_id=f"r{number}", lease=lease)
            transcripts.append(await calls.generate(request))

    started = [transcript.started for transcript in transcripts]
    assert [s.cached_tokens for s in started if s] == [0, 96, 0], "tenants share no cache"
    assert [s.decision_id for s in started if s] == ["dec_1"] * 3


async def ask(calls: Calls, method: str, request: object) -> object:
    try:
        return await getattr(calls.inference, method)(request)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


async def test_text_and_tokens_are_turned_into_each_other() -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        tokenized = await calls.inference.Tokenize(
            inference_pb2.TokenizeRequest(model="fake", text=f"né{EOS_TOKEN}")
        )
        detokenized = await calls.inference.Detokenize(
            inference_pb2.DetokenizeRequest(model="fake", tokens=tokenized.tokens)
        )

    assert unpack_tokens(tokenized.tokens.ids) == [*"né".encode(), 256]
    assert detokenized.text == f"né{EOS_TOKEN}"


async def test_the_model_describes_itself() -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        listed = await calls.inference.ListModels(inference_pb2.ListModelsRequest())
        got = await calls.inference.GetModel(inference_pb2.GetModelRequest(model="fake"))

    assert list(listed.models) == [got.model]
    assert got.model.max_context_tokens == CONTEXT
    assert got.model.has_chat_template
    assert got.model.tokenizer_digest == worker.info.tokenizer_digest


@pytest.mark.parametrize(
    ("method", "request_", "kind"),
    [
        ("Tokenize", inference_pb2.TokenizeRequest(model="x", text="a"), ModelNotFound),
        ("Detokenize", inference_pb2.DetokenizeRequest(model="x"), ModelNotFound),
        (
            "Detokenize",
            inference_pb2.DetokenizeRequest(
                model="fake", tokens=tokens_pb2.TokenIds(ids=b"\1\2\3")
            ),
            InvalidRequest,
        ),
        (
            "Detokenize",
            inference_pb2.DetokenizeRequest(model="fake", tokens=tokens(300)),
            InvalidRequest,
        ),
        ("GetModel", inference_pb2.GetModelRequest(model="x"), ModelNotFound),
        ("Embed", inference_pb2.EmbedRequest(model="x", texts=["a"]), ModelNotFound),
    ],
)
async def test_the_other_calls_refuse_as_clearly(
    method: str, request_: object, kind: type[PenstockError]
) -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        with pytest.raises(kind):
            await ask(calls, method, request_)
