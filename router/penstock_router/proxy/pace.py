"""How often a forwarded stream sends a message: the more streams, the more tokens share one.

A message costs a Python hop the same whatever it carries. Alone, a stream gets each token at once; so
many streams that their messages would fill a core get several tokens a message instead, and nobody
waits in a queue. The first token is never held back. Pure.
"""

from dataclasses import dataclass

from penstock.inference.v1 import generate_pb2
from penstock_core.rpc.ticks import TICK_S

_LEAST_DELAY_MS = 10
# Workers send at these ticks, so that what they send arrives together.
_TICK_MS = round(1000 * TICK_S)
_FEW_TOKENS = 8
_MANY_TOKENS = 32


@dataclass(slots=True)
class Pace:
    """Counts open streams and shares a budget of messages among them.

    Attributes:
        messages_per_s: messages that all streams together should send in a second.
        max_delay_ms: no token waits longer for others.
        open: streams that run.
        group: names the streams that share it; what a worker is asked for with a new one holds for
            those that run there as well.
    """

    messages_per_s: float
    max_delay_ms: int
    open: int = 0
    group: str = ""

    def coalescing(self) -> generate_pb2.Coalescing:
        """What to ask a worker for when a stream begins, for this one and all others."""
        share_ms = int(1000 * self.open / self.messages_per_s)
        if share_ms > _TICK_MS:
            share_ms = -(-share_ms // _TICK_MS) * _TICK_MS
        delay_ms = max(min(share_ms, self.max_delay_ms), _LEAST_DELAY_MS)
        tokens = _FEW_TOKENS if delay_ms == _LEAST_DELAY_MS else _MANY_TOKENS
        return generate_pb2.Coalescing(max_delay_ms=delay_ms, max_tokens=tokens, group=self.group)
