"""What the router refuses and how it says so; tokenizing, models, explanations."""

from pathlib import Path

import grpc
import pytest

from penstock.common.v1 import chat_pb2, tokens_pb2
from penstock.inference.v1 import generate_pb2
from penstock.inference.v1 import inference_service_pb2 as pb
from penstock.routing.v1 import routing_service_pb2
from penstock_core.blocks import pack_tokens
from penstock_core.errors import (
    InvalidRequest,
    MalformedMessage,
    ModelNotFound,
    NotFound,
    PenstockError,
    PromptTooLong,
    Unauthenticated,
)
from penstock_core.rpc import server as rpc
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security.auth import key_file
from penstock_router.relay.frames import GENERATE
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import (
    DEFAULT_SETTINGS,
    Cluster,
    ask,
    collect,
    running_cluster,
)


async def refusal(cluster: Cluster, request: generate_pb2.GenerateRequest) -> PenstockError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.generate(request)
    return from_rpc_error(caught.value)


async def test_bad_requests_get_a_typed_answer_and_the_router_lives_on() -> None:
    engine = FakeEngine()
    async with running_cluster(engine) as cluster:
        unknown = await refusal(cluster, ask("hello", model="nothing-like-it"))
        empty = await refusal(cluster, ask(""))
        negative = await refusal(cluster, ask("hello", max_tokens=-3))
        long = await refusal(cluster, ask("x" * 4000, max_tokens=500))
        huge = await refusal(cluster, ask("x" * 1_000_000))
        outside = await refusal(cluster, ask([1, 2, 70_000]))
        adapted = ask("hello")
        adapted.adapter = "no-such"
        adapter = await refusal(cluster, adapted)
        assert engine.requests == []
        assert (await cluster.generate(ask("hello"))).tokens
    assert isinstance(unknown, ModelNotFound)
    assert "fake" in unknown.message
    assert isinstance(empty, InvalidRequest)
    assert empty.field == "text"
    assert isinstance(negative, InvalidRequest)
    assert negative.field == "stop.max_tokens"
    assert isinstance(long, PromptTooLong)
    assert "4000" in long.message
    assert "4096" in long.message
    assert isinstance(huge, PromptTooLong)
    assert isinstance(outside, InvalidRequest)
    assert isinstance(adapter, NotFound)


async def test_bytes_that_are_no_utf8_are_the_callers_fault() -> None:
    async with (
        running_cluster(FakeEngine()) as cluster,
        rpc.channel(cluster.router.endpoint) as channel,
    ):
        raw = b"\x12\x04fake\x1a\x02\xff\xfe"  # model = "fake", text = two bytes
        call = channel.unary_unary(GENERATE, _same, _same)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(raw)
    assert isinstance(from_rpc_error(caught.value), MalformedMessage)


def _same(raw: bytes) -> bytes:
    return raw


async def test_a_wrong_key_is_refused_and_a_right_one_names_its_tenant(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(key_file([("pk-good", "tenant-a", False)]))
    settings = DEFAULT_SETTINGS.model_copy(update={"keys_file": str(file)})
    async with running_cluster(FakeEngine(), settings=settings) as cluster:
        error = await refusal(cluster, ask("hello"))
        good = (("authorization", "Bearer pk-good"),)
        answer = await collect(cluster.inference.Generate(ask("hello"), metadata=good))
    assert isinstance(error, Unauthenticated)
    assert answer.tokens


async def test_a_chat_is_rendered_with_the_models_template() -> None:
    engine = FakeEngine()
    async with running_cluster(engine) as cluster:
        request = ask("unused")
        request.chat.CopyFrom(
            chat_pb2.ChatPrompt(messages=[chat_pb2.ChatMessage(role="user", content="hi")])
        )
        await cluster.generate(request)
    assert bytes(engine.requests[0].prompt).decode() == "<user>hi\n<assistant>"


async def test_text_and_tokens_go_both_ways() -> None:
    async with running_cluster(FakeEngine()) as cluster:
        tokens = await cluster.inference.Tokenize(pb.TokenizeRequest(model="fake", text="año"))
        back = await cluster.inference.Detokenize(
            pb.DetokenizeRequest(model="fake", tokens=tokens.tokens)
        )
        wrong = tokens_pb2.TokenIds(ids=pack_tokens([5000]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.inference.Detokenize(pb.DetokenizeRequest(model="fake", tokens=wrong))
    assert back.text == "año"
    assert isinstance(from_rpc_error(caught.value), InvalidRequest)


async def test_models_are_listed_and_described() -> None:
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        listed = await cluster.inference.ListModels(pb.ListModelsRequest())
        got = await cluster.inference.GetModel(pb.GetModelRequest(model="fake"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.inference.GetModel(pb.GetModelRequest(model="other"))
    assert [m.name for m in listed.models] == ["fake"]
    assert got.model == listed.models[0]
    assert got.model.has_chat_template
    assert got.model.max_context_tokens == 4096
    assert isinstance(from_rpc_error(caught.value), ModelNotFound)


async def test_an_explanation_shows_every_candidate_and_terms_that_add_up() -> None:
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        text = "the same long beginning, " * 20
        await cluster.generate(ask(text))
        workers = cluster.router.fleet.workers
        await cluster.until(lambda: any(w.sync.indexed_blocks() >= 15 for w in workers()))
        await cluster.generate(ask(text, "second"))
        decision = (await cluster.explain("second")).decision
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.explain("never-heard-of")
    assert isinstance(from_rpc_error(caught.value), NotFound)
    best, other = decision.candidates
    assert (best.matched_tokens, other.matched_tokens) == (480, 0)
    assert best.worker_id == decision.chosen_worker_id
    for c in decision.candidates:
        parts = (
            c.network_s, c.backlog_s, c.prefill_s, c.pending_s, c.externality_s, c.tpot_s,
            c.kv_pressure_s, c.lateness_s, c.replication_s, c.adapter_load_s,
        )  # fmt: skip
        assert c.total_s == pytest.approx(sum(parts))
    assert decision.margin_s == pytest.approx(other.total_s - best.total_s)
    assert "holds 480 of 500 prompt tokens" in decision.reason
    assert decision.num_blocks == 15
    assert 0 < decision.decision_us < 1_000_000


async def test_a_key_must_be_named_to_explain() -> None:
    async with running_cluster(FakeEngine()) as cluster:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.routing.ExplainDecision(routing_service_pb2.ExplainDecisionRequest())
    assert isinstance(from_rpc_error(caught.value), InvalidRequest)
