"""A call of its own: for workers that know no relay, and for requests too large to share one."""

from typing import TypeAlias

import grpc
from google.protobuf.message import Message

from penstock.inference.v1 import generate_pb2
from penstock_core.rpc.attempts import call_failure
from penstock_router.relay.frames import GENERATE, Wanted

_RawCall: TypeAlias = "grpc.aio.UnaryStreamCall[Message, bytes]"


class PlainCall:
    """See ``FrameStream``."""

    def __init__(self, channel: grpc.aio.Channel, wanted: Wanted) -> None:
        self._who = wanted.who
        self._call: _RawCall = channel.unary_stream(
            GENERATE,
            request_serializer=generate_pb2.GenerateRequest.SerializeToString,
            response_deserializer=_unparsed,
        )(wanted.request, timeout=wanted.timeout_s, metadata=wanted.metadata)

    async def read(self, *, has_begun: bool) -> bytes | None:
        """See ``FrameStream``."""
        try:
            raw = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise call_failure(error, self._who, has_begun=has_begun) from error
        return raw if isinstance(raw, bytes) else None

    def cancel(self) -> None:
        """See ``FrameStream``."""
        self._call.cancel()


def _unparsed(raw: bytes) -> bytes:
    return raw
