"""Command-line options that several commands share."""

import os
from enum import StrEnum
from typing import Annotated

import typer

from penstock_cli.failures import CommandFailed
from penstock_client import Mode, Tls

ROUTER_PORT = 50051
BATCH_PORT = 50052
GATEWAY_PORT = 8000


class Weights(StrEnum):
    """How weights are kept."""

    NONE = "none"
    INT8 = "int8"


Quantization = Annotated[
    Weights, typer.Option("--quantization", help="int8 keeps each weight as a byte.")
]
Target = Annotated[
    str,
    typer.Option("--target", envvar="PENSTOCK_TARGET", help="host:port of the router."),
]
BatchTarget = Annotated[
    str,
    typer.Option(
        "--batch-target", envvar="PENSTOCK_TARGET_BATCH", help="host:port of the batch service."
    ),
]
ApiKey = Annotated[
    str,
    typer.Option("--api-key", envvar="PENSTOCK_API_KEY", help="Who you are, where keys are used."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Model = Annotated[str, typer.Option("--model", "-M", help="Name; empty takes the only one.")]
Adapter = Annotated[str, typer.Option("--adapter", help="LoRA adapter of the model.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Most new tokens.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", "-t", help="0 always takes the likeliest token.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Equal seeds give equal tokens.")]
Way = Annotated[
    Mode, typer.Option("--mode", help="Stream straight from the worker, or through the router.")
]

DEFAULT_TARGET = f"127.0.0.1:{ROUTER_PORT}"
DEFAULT_BATCH_TARGET = f"127.0.0.1:{BATCH_PORT}"


def own_tls() -> Tls:
    """How commands connect: from ``PENSTOCK_TLS_CA``, ``_CERT``, ``_KEY`` and ``_SERVER_NAME``.

    Raises:
        CommandFailed: the files cannot be used.
    """
    tls = Tls.from_environment(os.environ)
    try:
        tls.check()
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    return tls
