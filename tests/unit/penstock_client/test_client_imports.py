"""What a client team gets and what it need not install."""

import subprocess
import sys

import penstock_client

HEAVY = ("pydantic", "torch", "redis", "celery", "starlette", "grpc_health.v1", "grpc_reflection.v1alpha",
         "opentelemetry.sdk", "tokenizers", "numpy", "uvloop", "typer", "rich")  # fmt: skip


def test_importing_the_client_loads_nothing_that_only_servers_need() -> None:
    code = f"import sys, penstock_client; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_public_names_are_these() -> None:
    assert sorted(penstock_client.__all__) == [
        "AsyncBatchClient", "AsyncClient", "Choice", "Client", "Completed", "Constraint", "Cost",
        "Delta", "Embeddings", "Finished", "GenerateOptions", "Generation", "Inputs", "Message", "Mode",
        "Pooling", "Prompt", "Started", "StreamEvent", "Timing", "TokenLogprob", "Usage", "Vote",
    ]  # fmt: skip
    assert all(hasattr(penstock_client, name) for name in penstock_client.__all__)
