"""Fits drafts into a step: as many as tokens and pages allow without taking either from anybody.

Owns these bounds. Drafts are guesses, so they never preempt, never outlive their request's limit
and never take the last pages. Pure Python; no torch, no asyncio.
"""

from dataclasses import dataclass, replace
from types import MappingProxyType

from penstock_engine.native.kv.memory import KvMemory
from penstock_engine.native.scheduling.plan import Chunk, Drafts
from penstock_engine.native.scheduling.request import Sample

NO_DRAFTS: Drafts = MappingProxyType({})


@dataclass(slots=True)
class DraftRoom:
    """What a step has left for drafts: ``tokens`` of its budget and ``pages`` nobody will miss."""

    memory: KvMemory
    tokens: int
    pages: int

    def take(self, sample: Sample, wanted: int) -> int:
        """Secure pages of the sample's own for as many drafts behind its last token as there can be."""
        first, size = sample.computed + 1, self.memory.block_tokens
        count = min(wanted, self.tokens, most_drafts(sample))
        for block in range(first // size, (first + count - 1) // size + 1):
            if block == len(sample.pages):
                if self.pages < 1 or not self.memory.can_allocate():
                    count = block * size - first
                    break
                sample.pages.append(self.memory.allocate())
                self.pages -= 1
        self.tokens -= count
        return count


def most_drafts(sample: Sample) -> int:
    """Drafts that could still be of use: a step draws one token more than drafts stand."""
    return max(sample.request.spec.max_tokens - sample.num_output - 1, 0)


def add_drafts(chunks: list[Chunk], drafts: Drafts, room: DraftRoom) -> int:
    """Put drafts behind the decoding chunks, in place, while there is room. Returns their number."""
    before = room.tokens
    for index, chunk in enumerate(chunks):
        wanted = chunk.sample.permitted(drafts.get(chunk.sample, ()))
        count = room.take(chunk.sample, len(wanted)) if wanted else 0
        if wanted and count > 0:
            total = 1 + count
            chunks[index] = replace(
                chunk, count=total, num_logits=total, drafts=tuple(wanted[:count])
            )
    return before - room.tokens
