"""What a proxied stream has sent, kept as raw frames and read only when somebody has to go on.

Parsing costs as much as forwarding, and almost no stream fails; so frames are folded into a
transcript when one does, or when there are so many that the fold is the smaller of the two.
"""

from penstock.common.v1 import usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.requests.transcript import Response, Transcript

_MAX_FRAMES = 256
_MAX_BYTES = 64 * 1024


def _tag(field_number: int) -> int:
    # GenerateResponse is one oneof, so a frame's first byte is the tag of its event.
    return field_number << 3 | 2


STARTED_TAG = _tag(Response.STARTED_FIELD_NUMBER)
COMPLETED_TAG = _tag(Response.COMPLETED_FIELD_NUMBER)


class Emitted:
    """One request's frames."""

    def __init__(self, request: generate_pb2.GenerateRequest) -> None:
        self._transcript = Transcript(request)
        self._frames: list[bytes] = []
        self._bytes = 0
        self.replays = self._transcript.replays
        self.has_begun = False
        self.is_completed = False

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples."""
        self._fold()
        return self._transcript.num_tokens

    def add(self, frame: bytes) -> None:
        """This frame goes to the client."""
        self._frames.append(frame)
        self._bytes += len(frame)
        if frame[0] != STARTED_TAG:
            self.has_begun = True
            self.is_completed = frame[0] == COMPLETED_TAG
        if len(self._frames) > _MAX_FRAMES or self._bytes > _MAX_BYTES:
            self._fold()

    def admit(self, frame: bytes) -> bytes | None:
        """What of a later attempt's frame the client has not had; None if it had all of it."""
        self._fold()
        message = self._transcript.admit(Response.FromString(frame))
        return None if message is None else message.SerializeToString()

    def resume(self, attempt: int, elapsed: usage_pb2.Timing) -> generate_pb2.ResumeState:
        """What the next attempt goes on from."""
        self._fold()
        return self._transcript.resume(attempt, elapsed)

    def _fold(self) -> None:
        frames, self._frames, self._bytes = self._frames, [], 0
        for frame in frames:
            self._transcript.note(Response.FromString(frame))
