"""Adapters as the official SDK sees them: models that have a parent."""

import openai
import pytest
from openai import AsyncOpenAI

from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.cluster import running_cluster
from penstock_testing.servers.gateway import running_gateway


async def test_adapters_are_models_with_a_parent() -> None:
    engine = FakeEngine(FakeConfig(adapters=("poet", "sql")))
    async with (
        running_cluster(engine) as cluster,
        running_gateway(cluster.router.endpoint) as gateway,
        AsyncOpenAI(base_url=gateway.api, api_key="any", max_retries=0) as client,
    ):
        listed = {model.id: model.model_extra or {} for model in (await client.models.list()).data}
        one = await client.models.retrieve("poet")
        answer = await client.completions.create(model="poet", prompt="x", max_tokens=3)
        await client.completions.create(model="fake:sql", prompt="x", max_tokens=3)
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nobody")
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="fake:nobody", prompt="x")

    assert list(listed) == ["fake", "poet", "sql"]
    assert listed["fake"]["parent"] is None
    assert listed["poet"]["parent"] == listed["sql"]["parent"] == "fake"
    assert one.id == "poet"
    assert answer.model == "poet"
    assert [request.adapter for request in engine.requests] == ["poet", "sql"]
