"""``python -m penstock_core.probe TARGET``: exits with 0 if a process is ready, for containers' health.

``TARGET`` is an ``http://`` URL that must answer 200, or ``host:port`` of a gRPC server whose health
must say SERVING. Small and quick to start, since it runs every few seconds.
"""

import sys
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock_core.channels import sync_channel

_TIMEOUT_S = 3.0
USAGE = "usage: python -m penstock_core.probe {http://HOST:PORT/PATH | HOST:PORT}"


def main(arguments: list[str]) -> int:
    """Probe once; 0 if ready, 1 if not, 2 if asked wrongly."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write(f"{USAGE}\n")
        return 2
    target = arguments[0]
    failure = _http(target) if target.startswith("http://") else _grpc(target)
    if failure:
        sys.stderr.write(f"{target} is not ready: {failure}\n")
    return 1 if failure else 0


def _http(url: str) -> str:
    """Why it is not ready; empty if it is."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - http only
            return "" if answer.status == 200 else f"status {answer.status}"
    except (OSError, ValueError) as error:
        return str(error)


def _grpc(target: str) -> str:
    with sync_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    serving = health_pb2.HealthCheckResponse.SERVING
    return "" if answer.status == serving else "NOT_SERVING"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
