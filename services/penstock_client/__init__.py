"""What another service imports to use Penstock; needs only gRPC, Protobuf and OpenTelemetry's API.

    async with AsyncClient("router:50051") as client:
        answer = await client.generate("def add(a, b):", max_tokens=32)
        async for event in client.stream("import os"):
            ...

Every failure is a class of ``penstock_core.errors``; gRPC's own exceptions never come out.
"""

from penstock_client.batches import AsyncBatchClient
from penstock_client.blocking import Client
from penstock_client.client import AsyncClient
from penstock_client.options import (
    Constraint,
    GenerateOptions,
    Inputs,
    Message,
    Pooling,
    Prompt,
)
from penstock_client.results import (
    Choice,
    Completed,
    Cost,
    Delta,
    Embeddings,
    Finished,
    Generation,
    Started,
    StreamEvent,
    Timing,
    TokenLogprob,
    Usage,
    Vote,
)
from penstock_client.streaming import Mode
from penstock_core.security.tls import Tls

__all__ = [
    "AsyncBatchClient",
    "AsyncClient",
    "Choice",
    "Client",
    "Completed",
    "Constraint",
    "Cost",
    "Delta",
    "Embeddings",
    "Finished",
    "GenerateOptions",
    "Generation",
    "Inputs",
    "Message",
    "Mode",
    "Pooling",
    "Prompt",
    "Started",
    "StreamEvent",
    "Timing",
    "Tls",
    "TokenLogprob",
    "Usage",
    "Vote",
]
