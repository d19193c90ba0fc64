"""What every test stands on: no blocking call in a coroutine, no trace of the caller's settings."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings

from penstock_testing.engines.trtllm import installed_double

# No test asserts a time: a busy machine is no counterexample.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TLS_READERS = {"stamps", "configuration", "channel_credentials", "check"}
ROOTS = ("protos", "services", "router", "batch")


@pytest.fixture(autouse=True)
def _no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """A blocking call inside a coroutine of ours fails the test that made it."""
    processes = ["penstock_router", "penstock_worker", "penstock_gateway", "penstock_batch"]
    modules = ["penstock_core", *processes]
    with blockbuster_ctx(modules) as guard:
        # grpc.aio joins its poller thread when the last channel dies.
        guard.functions["threading.Lock.acquire"].deactivate()
        # A few kilobytes of PEM files, which gRPC wants in the middle of making a connection.
        for function in guard.functions.values():
            function.can_block_in("penstock_core/security/tls.py", TLS_READERS)
        yield guard


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the person who runs the tests must not reach them."""
    for name in list(os.environ):
        if name.startswith(("PENSTOCK_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest.fixture
def tensorrt_llm() -> Iterator[ModuleType]:
    """The contract double of TensorRT-LLM in the package's place."""
    with installed_double(Path(__file__).parent / "contract/trtllm/double") as module:
        yield module
