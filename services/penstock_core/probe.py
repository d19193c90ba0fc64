"""``python -m penstock_core.probe TARGET``: exits with 0 if a process is ready, for containers' health.

``TARGET`` is an ``http(s)://`` URL that must answer 200, or ``host:port`` of a gRPC server whose health
must say SERVING; ``PENSTOCK_TLS_CA`` and its like say how to ask over TLS. Small and quick to start, since it runs every few seconds.
"""

import os
import sys
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock_core.rpc.channels import sync_channel
from penstock_core.security.tls import Tls, client_context

_TIMEOUT_S = 3.0
USAGE = "usage: python -m penstock_core.probe {http[s]://HOST:PORT/PATH | HOST:PORT}"


def main(arguments: list[str]) -> int:
    """Probe once; 0 if ready, 1 if not, 2 if asked wrongly."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write(f"{USAGE}\n")
        return 2
    target = arguments[0]
    tls = Tls.from_environment(os.environ)
    is_http = target.startswith(("http://", "https://"))
    try:
        tls.check()
        failure = _http(target, tls) if is_http else _grpc(target, tls)
    except (OSError, ValueError) as error:
        failure = str(error)
    if failure:
        sys.stderr.write(f"{target} is not ready: {failure}\n")
    return 1 if failure else 0


def _http(url: str, tls: Tls) -> str:
    """Why it is not ready; empty if it is."""
    context = client_context(tls) if url.startswith("https://") else None
    try:
        with urllib.request.urlopen(  # noqa: S310 - http and https only
            url, timeout=_TIMEOUT_S, context=context
        ) as answer:
            return "" if answer.status == 200 else f"status {answer.status}"
    except (OSError, ValueError) as error:
        return str(error)


def _grpc(target: str, tls: Tls) -> str:
    with sync_channel(target, tls) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    serving = health_pb2.HealthCheckResponse.SERVING
    return "" if answer.status == serving else "NOT_SERVING"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
