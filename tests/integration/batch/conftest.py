from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from penstock_testing.processes.redis import redis_server
from penstock_testing.servers.batch import BatchBench, batch_bench
from penstock_testing.servers.echo_router import EchoRouter, running_echo


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture
def router() -> EchoRouter:
    return EchoRouter()


@pytest.fixture
async def bench(tmp_path: Path, redis_url: str, router: EchoRouter) -> AsyncIterator[BatchBench]:
    async with (
        running_echo(router) as address,
        batch_bench(tmp_path, redis_url, address) as made,
    ):
        yield made
