"""Samples in order of rank, and the blocks that running ones are computing.

Owns two small indices of the scheduler, so that it can ask in one word. Rank is priority
class, then arrival, then choice; smaller goes first. Pure Python; no torch, no asyncio.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from penstock_engine.native.scheduling.request import Rank, Sample


def _rank(sample: Sample) -> Rank:
    return sample.rank


class RankedSamples:
    """A set of samples, best rank first."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self.backlog_tokens = 0
        """Tokens to compute before each of them decodes, while their caches are unknown."""
        self.batch_tokens = 0
        """Those of them that are of class BATCH."""

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def __contains__(self, sample: object) -> bool:
        return isinstance(sample, Sample) and self._index(sample) is not None

    def snapshot(self) -> list[Sample]:
        """The samples now, safe to walk while some leave."""
        return list(self._samples)

    def worst(self) -> Sample | None:
        """The last to be served, the first to be preempted."""
        return self._samples[-1] if self._samples else None

    def add(self, sample: Sample) -> None:
        """Put a sample in its place."""
        insort(self._samples, sample, key=_rank)
        self._count(sample, 1)

    def discard(self, sample: Sample) -> None:
        """Take a sample out, if it is in."""
        index = self._index(sample)
        if index is not None:
            del self._samples[index]
            self._count(sample, -1)

    def check_integrity(self) -> None:
        """Raise AssertionError unless ranks rise strictly."""
        ranks = [sample.rank for sample in self._samples]
        assert ranks == sorted(set(ranks)), "samples are out of order or doubled"

    def _count(self, sample: Sample, sign: int) -> None:
        tokens = sign * _backlog(sample)
        self.backlog_tokens += tokens
        if sample.is_batch:
            self.batch_tokens += tokens

    def _index(self, sample: Sample) -> int | None:
        index = bisect_left(self._samples, sample.rank, key=_rank)
        found = index < len(self._samples) and self._samples[index] is sample
        return index if found else None


def _backlog(sample: Sample) -> int:
    """What a waiting sample will compute; a fresh sibling forks and computes nothing."""
    return 0 if sample.choice_index and not sample.num_output else len(sample.tokens)


class PendingBlocks:
    """Blocks that a running sequence is going to store, by hash.

    Who needs one waits for it rather than computing it again. First come, first entered: a second
    sequence that computes the same block (it could not wait) is not listed for it.
    """

    def __init__(self) -> None:
        self._computing: dict[int, Sample] = {}

    def is_computed(self, key: int, waiter: Sample) -> bool:
        """Whether a sequence of at least the waiter's class computes it (else waiting would invert priorities)."""
        owner = self._computing.get(key)
        return owner is not None and owner is not waiter and owner.rank[0] <= waiter.rank[0]

    def add(self, sample: Sample) -> None:
        """List the full blocks that a sample just started will compute."""
        for key in sample.hashes[sample.stored :]:
            self._computing.setdefault(key, sample)

    def discard(self, key: int, sample: Sample) -> None:
        """A block of the sample is stored."""
        if self._computing.get(key) is sample:
            del self._computing[key]

    def remove(self, sample: Sample) -> None:
        """The sample left, or cannot store any more."""
        for key in sample.hashes[sample.stored :]:
            self.discard(key, sample)

    def check_integrity(self, running: Iterable[Sample]) -> None:
        """Raise AssertionError unless each listed block is still to come from a running sample."""
        ids = {id(sample) for sample in running}
        for key, sample in self._computing.items():
            assert id(sample) in ids, "a block waits for a sequence that does not run"
            assert key in sample.hashes[sample.stored :], "a stored block is listed as pending"
