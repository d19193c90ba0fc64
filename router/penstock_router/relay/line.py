"""The way of generations to one worker: on a shared stream if it can be, else by calls of their own."""

import grpc

from penstock.worker.v1 import relay_pb2, worker_service_pb2
from penstock_core.telemetry.tracing import Metadata
from penstock_router.relay.frames import FrameStream, Wanted
from penstock_router.relay.plain import PlainCall
from penstock_router.relay.relay import MAX_REQUEST_BYTES, Relay

_SERVICE = worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]
RELAY = f"/{_SERVICE.full_name}/Relay"


class Line:
    """Opens streams; the relay begins with the first and anew after it broke."""

    def __init__(
        self, channel: grpc.aio.Channel, credentials: Metadata = (), *, relays: bool = True
    ) -> None:
        self._channel = channel
        self._credentials = credentials
        self._relays = relays
        self._relay: Relay | None = None

    @property
    def shared(self) -> int:
        """Streams that share a call now."""
        return 0 if self._relay is None else len(self._relay)

    def open(self, wanted: Wanted, *, relayed: bool) -> FrameStream:
        """Begin a call; ``relayed`` tells whether the worker knows relays."""
        # gRPC would let more calls wait for their turn, so those beyond a full relay do.
        if not (relayed and self._relays) or self._current().is_full:
            return PlainCall(self._channel, wanted)
        request = wanted.request.SerializeToString()
        if len(request) > MAX_REQUEST_BYTES:
            return PlainCall(self._channel, wanted)
        return self._current().open(wanted.who, request, wanted.metadata, wanted.timeout_s)

    async def close(self) -> None:
        """End what shares a stream."""
        if self._relay is not None:
            await self._relay.close()

    def _current(self) -> Relay:
        if self._relay is None or not self._relay.is_open:
            call = self._channel.stream_stream(
                RELAY,
                request_serializer=relay_pb2.RelayRequest.SerializeToString,
                response_deserializer=relay_pb2.RelayResponse.FromString,
            )(metadata=self._credentials)
            self._relay = Relay(call)
        return self._relay
