"""A Redis for the batch service of the guarded platform."""

from collections.abc import Iterator

import pytest

from penstock_testing.processes.redis import redis_server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url
