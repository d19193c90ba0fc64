"""How far a worker is: the least time that a small call to it took lately."""

import time
from collections import deque

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_WINDOW = 16
_STEP_S = 0.001
_LEAST = 4
"""Round trips before the least of them is believed: the first ones pay for connections."""


class Distance:
    """Round trips of the last few calls.

    The least of them is the network's, the rest is the weather; and in whole milliseconds, since
    less tells workers on one host from another by chance only.
    """

    def __init__(self) -> None:
        self._round_trips: deque[float] = deque(maxlen=_WINDOW)
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """The round trip; 0 until a few were measured."""
        return self._seconds

    def add(self, round_trip_s: float) -> None:
        """Take one measurement in."""
        self._round_trips.append(round_trip_s)
        if len(self._round_trips) >= _LEAST:
            self._seconds = min(self._round_trips) // _STEP_S * _STEP_S

    async def measure(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        """Ask for its health; a worker that does not answer tells nothing of its distance."""
        began = time.perf_counter()
        try:
            await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.aio.AioRpcError:
            return
        self.add(time.perf_counter() - began)
