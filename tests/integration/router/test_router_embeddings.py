"""Embeddings through router and workers: parts, retries, refusals, leases, cancellation."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from penstock.common.v1 import tokens_pb2
from penstock.inference.v1 import inference_service_pb2 as pb
from penstock.worker.v1 import worker_service_pb2
from penstock_core.blocks import pack_tokens
from penstock_core.errors import (
    Aborted,
    InvalidRequest,
    LeaseInvalid,
    ModelNotFound,
    NotSupported,
    PenstockError,
    PromptTooLong,
)
from penstock_core.rpc.status import from_rpc_error
from penstock_engine.api import Pooling, Priority
from penstock_router.embedding import MAX_PART_INPUTS
from penstock_testing.callers.calls import calls_to
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.cluster import Cluster, running_cluster

TEXTS = ["open a file", "read lines", "x"]


def wanted(*texts: str, **fields: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(**{"model": "fake", "texts": texts, **fields})


async def embed(stub: Any, request: pb.EmbedRequest) -> pb.EmbedResponse:
    try:
        answer: pb.EmbedResponse = await stub.Embed(request, timeout=20)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    return answer


def vectors(answer: pb.EmbedResponse) -> np.ndarray:
    return np.array([list(each.values) for each in answer.embeddings], dtype=np.float32)


def expected(engine: FakeEngine, texts: Sequence[str], size: int | None = None) -> np.ndarray:
    return np.array([engine.vector_of(list(text.encode()), size) for text in texts])


async def test_vectors_come_in_the_order_of_the_inputs_with_their_usage() -> None:
    async with running_cluster(FakeEngine(), lease_secret="secret") as cluster:
        answer = await embed(
            cluster.inference,
            wanted(*TEXTS, request_id="e1", pooling=pb.POOLING_MEAN, dimensions=3, priority=4),
        )
        engine = cluster.engine("worker-1")

        assert np.array_equal(vectors(answer), expected(engine, TEXTS, 3))
        assert answer.prompt_tokens == sum(map(len, TEXTS))
        assert list(answer.worker_ids) == ["worker-1"]
        assert answer.request_id == "e1"
        (asked,) = engine.embedded
        assert (asked.pooling, asked.priority) == (Pooling.MEAN, Priority.BATCH)
        explained = await cluster.explain("e1")
        assert explained.decision.chosen_worker_id == "worker-1"


async def test_token_ids_are_read_as_they_are() -> None:
    async with running_cluster(FakeEngine()) as cluster:
        ids = [[1, 2, 3], [256]]
        inputs = [tokens_pb2.TokenIds(ids=pack_tokens(each)) for each in ids]
        answer = await embed(cluster.inference, pb.EmbedRequest(model="fake", token_inputs=inputs))

        assert [list(text) for text in cluster.engine("worker-1").embedded[0].texts] == ids
        assert len(answer.embeddings) == 2


async def test_a_large_request_is_spread_over_idle_workers() -> None:
    engines = FakeEngine(), FakeEngine()
    async with running_cluster(*engines) as cluster:
        for engine in engines:
            engine.hold()
        texts = [f"text number {i}" for i in range(4 * MAX_PART_INPUTS)]
        asking = asyncio.create_task(embed(cluster.inference, wanted(*texts)))
        await cluster.until(lambda: sum(len(engine.embedded) for engine in engines) == 4)
        for engine in engines:
            engine.release()
        answer = await asking

        assert [len(engine.embedded) for engine in engines] == [2, 2]
        assert np.array_equal(vectors(answer), expected(engines[0], texts))
        assert list(answer.worker_ids) == ["worker-1", "worker-2"]


async def test_a_part_of_a_worker_that_fails_is_done_by_another() -> None:
    engines = FakeEngine(), FakeEngine()
    async with running_cluster(*engines) as cluster:
        engines[0].hold()
        engines[1].hold()
        asking = asyncio.create_task(embed(cluster.inference, wanted(*TEXTS)))
        await cluster.until(lambda: any(engine.embedded for engine in engines))
        first, second = sorted(engines, key=lambda engine: not engine.embedded)
        second.release()
        await cluster.workers[engines.index(first)].kill()
        answer = await asking

        assert np.array_equal(vectors(answer), expected(second, TEXTS))
        assert len(second.embedded) == 1


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"texts": []}, InvalidRequest, "0 inputs"),
        ({"texts": ["a", ""]}, InvalidRequest, "empty"),
        ({"texts": ["x" * 65]}, PromptTooLong, "65 tokens; at most 64"),
        (
            {"texts": ["a"], "dimensions": 9},
            InvalidRequest,
            r"dimensions is 9; it lies in \[1, 8\]",
        ),
        ({"texts": ["a"], "model": ""}, InvalidRequest, "model must be named"),
        ({"texts": ["a"], "model": "other"}, ModelNotFound, "no model 'other'"),
        ({"texts": ["a"], "request_id": "a b"}, InvalidRequest, "request_id"),
        (
            {"texts": [], "token_inputs": [tokens_pb2.TokenIds(ids=pack_tokens([257]))]},
            InvalidRequest,
            "vocabulary of 257",
        ),
        (
            {"texts": ["a"], "token_inputs": [tokens_pb2.TokenIds(ids=b"1234")]},
            InvalidRequest,
            "exclude",
        ),
        ({"texts": [], "token_inputs": [tokens_pb2.TokenIds(ids=b"123")]}, InvalidRequest, "whole"),
    ],
)
async def test_bad_requests_are_told_apart_by_router_and_worker_alike(
    fields: dict[str, Any], error: type[PenstockError], said: str
) -> None:
    async with (
        running_cluster(FakeEngine()) as cluster,
        calls_to(cluster.workers[0].endpoint) as worker,
    ):
        with pytest.raises(error, match=said) as by_router:
            await embed(cluster.inference, wanted(**fields))
        with pytest.raises(error) as by_worker:
            await embed(worker.inference, wanted(**fields))

        assert type(by_router.value) is type(by_worker.value)
        assert not cluster.engine("worker-1").embedded


async def test_a_model_without_embeddings_says_so() -> None:
    engine = FakeEngine(FakeConfig(embedding_dimensions=0, max_embed_tokens=0))
    async with running_cluster(engine) as cluster:
        with pytest.raises(NotSupported, match="computes no embeddings"):
            await embed(cluster.inference, wanted("a"))


async def test_a_worker_with_a_secret_takes_only_leased_requests() -> None:
    async with (
        running_cluster(FakeEngine(), lease_secret="secret") as cluster,
        calls_to(cluster.workers[0].endpoint) as worker,
    ):
        with pytest.raises(LeaseInvalid):
            await embed(worker.inference, wanted("a"))


async def held(cluster: Cluster, request: pb.EmbedRequest) -> "asyncio.Task[pb.EmbedResponse]":
    """A request that its worker has and does not answer."""
    engine = cluster.engine("worker-1")
    engine.hold()
    asking = asyncio.create_task(embed(cluster.inference, request))
    await cluster.until(lambda: bool(engine.embedded))
    return asking


async def test_a_cancelled_request_leaves_its_worker() -> None:
    async with (
        running_cluster(FakeEngine()) as cluster,
        calls_to(cluster.workers[0].endpoint) as worker,
    ):
        asking = await held(cluster, wanted("a", request_id="e1"))
        asking.cancel()

        drained = await worker.control.Drain(worker_service_pb2.DrainRequest(grace_s=10))
        assert drained.aborted == 0, "it was still there"


async def test_a_request_can_be_aborted_by_its_id() -> None:
    async with (
        running_cluster(FakeEngine()) as cluster,
        calls_to(cluster.workers[0].endpoint) as worker,
    ):
        asking = await held(cluster, wanted("a", request_id="e1"))
        assert (
            await worker.control.Abort(worker_service_pb2.AbortRequest(request_id="e1"))
        ).aborted

        with pytest.raises(Aborted):
            await asking
