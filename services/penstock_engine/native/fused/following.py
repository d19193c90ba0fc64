"""Constraints followed by the kernel's threads, between steps and beside them.

Owns a sample's follower (``Follower``, instead of ``GrammarMatcher``) and the masks of a step that are
collected from them (``FollowedMasks``, instead of ``Masks``). A follower told a token finds out at
once what may come next, on a thread that would idle until the next step; nothing of that needs the
GIL. Knows no logits.
"""

import weakref
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from penstock_engine.api import FinishReason
from penstock_engine.native.fused.library import CFollower, CGrammar, Following, Library
from penstock_engine.native.grammars import Followed
from penstock_engine.native.llguidance_c import CMatcher, CTokenizer, GrammarLibrary
from penstock_engine.native.masks import RowMasks, runs_of
from penstock_engine.native.plan import Chunk
from penstock_engine.native.vocabulary import Cutter

_BUSY = -1
_ENDED = {1: FinishReason.STOP, 2: FinishReason.CONSTRAINT}
"""By what the kernel calls complete and broken; 0 is open."""
_WORD_BITS = 32

_GRAMMAR = {
    "mask": "llg_matcher_compute_mask_into",
    "consume": "llg_matcher_consume_token",
    "validate": "llg_matcher_validate_tokens",
    "rollback": "llg_matcher_rollback",
    "stopped": "llg_matcher_is_stopped",
    "failed": "llg_matcher_is_error",
}


class Follower:
    """A constraint as far as one sample has followed it. Owned by the step thread once made."""

    __slots__ = ("__weakref__", "_following", "_raw", "address", "ended", "fresh")

    def __init__(
        self, following: Following, raw: CMatcher, address: int, ended: FinishReason | None
    ) -> None:
        self._following = following
        self._raw = raw  # lives as long
        self.address = address
        self.ended = ended
        """See ``GrammarMatcher.ended``."""
        self.fresh = True
        """Whether nobody was asked yet what may follow."""
        weakref.finalize(self, _end, following, address, raw)

    def advance(self, token: int) -> None:
        """The sample has one token more."""
        state = self._following.follow(self.address, token)
        while state == _BUSY:
            self._following.wait(self.address)
            state = self._following.follow(self.address, token)
        self.ended = _ENDED.get(state)
        self.fresh = False

    def permitted(self, tokens: Sequence[int]) -> int:
        """How many of these tokens could follow, in order."""
        ids = array("I", tokens)
        found = _BUSY
        while found == _BUSY:
            self._following.wait(self.address)
            found = self._following.permitted(self.address, ids.buffer_info()[0], len(ids))
        return found


def _end(following: Following, address: int, _raw: CMatcher) -> None:
    """The follower first: what it follows is kept until then by being named here."""
    following.end(address)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Rows of some followers, numbered as the step's draws are; drafts of each, if one has any."""

    rows: Sequence[int]
    addresses: "array[int]"
    counts: "array[int] | None" = None


class FollowedMasks:
    """Collects masks from followers; makes them, too. Closed by its owner."""

    def __init__(self, library: Library, grammars: GrammarLibrary, vocab_size: int) -> None:
        self._following = library.following
        self._grammars = grammars
        self._vocab_size = vocab_size
        self._words = vocab_size // _WORD_BITS + 1
        self._masks = np.empty((0, self._words), dtype=np.uint32)
        self._ends = np.empty(0, dtype=np.int8)
        addresses = {field: grammars.address(name) for field, name in _GRAMMAR.items()}
        self.chores = self._following.chores(CGrammar(**addresses))
        weakref.finalize(self, self._following.end_chores, self.chores)

    def compiler(self, tokens: Sequence[bytes], cut: Cutter) -> "FollowedCompiler":
        """What makes matchers for these masks."""
        return FollowedCompiler(self, CTokenizer(self._grammars, tokens, cut))

    def follow(self, raw: CMatcher, followed: Followed) -> Follower:
        """A follower of a matcher that is so far."""
        request = followed.request
        stops = array("i", sorted(request.stop_token_ids))
        told = CFollower(
            matcher=raw.address,
            stops=stops.buffer_info()[0],
            num_stops=len(stops),
            min_tokens=request.min_tokens,
            followed=followed.num_tokens,
            vocabulary=self._vocab_size,
        )
        address = self._following.create(self.chores, told)
        return Follower(self._following, raw, address, followed.ended)

    def begin(self, chunks: Sequence[Chunk]) -> Callable[[], RowMasks] | None:
        """See ``Masks.begin``; valid until the next step."""
        runs = runs_of(chunks, Follower)
        if not runs:
            return None
        addresses = array("Q", [run.matcher.address for run in runs])
        if not any(run.drafts or run.matcher.fresh for run in runs):
            return partial(self._collect, _Asked([run.row for run in runs], addresses))
        counts = array("i", [len(run.drafts) for run in runs])
        drafts = array("I", [draft for run in runs for draft in run.drafts])
        self._following.ask(
            addresses.buffer_info()[0], counts.buffer_info()[0], drafts.buffer_info()[0], len(runs)
        )
        rows = [run.row + i for run in runs for i in range(1 + len(run.drafts))]
        return partial(self._collect, _Asked(rows, addresses, counts))

    def close(self) -> None:
        """Nothing is held that collecting this does not free."""

    def _collect(self, asked: _Asked) -> RowMasks:
        count = len(asked.rows)
        if count > len(self._ends):
            self._masks = np.empty((count, self._words), dtype=np.uint32)
            self._ends = np.empty(count, dtype=np.int8)
        place, size = asked.addresses.buffer_info()
        ended = self._following.answer(
            place,
            None if asked.counts is None else asked.counts.buffer_info()[0],
            size,
            self._masks.ctypes.data,
            self._ends.ctypes.data,
        )
        ends = {}
        if ended:
            codes = self._ends[:count].tolist()
            ends = {row: _ENDED[code] for row, code in zip(asked.rows, codes, strict=True) if code}
        return RowMasks(asked.rows, self._masks[:count], ends)


class FollowedCompiler:
    """llguidance by its C interface; see ``grammars.Compiler``."""

    def __init__(self, masks: FollowedMasks, tokenizer: CTokenizer) -> None:
        self._masks = masks
        self._tokenizer = tokenizer

    def compile(self, grammar: str) -> CMatcher:
        """See ``Compiler.compile``."""
        return self._tokenizer.matcher(grammar)

    def copy(self, raw: CMatcher) -> CMatcher:
        """See ``Compiler.copy``."""
        return raw.deep_copy()

    def matcher(self, raw: CMatcher, followed: Followed) -> Follower:
        """See ``Compiler.matcher``."""
        return self._masks.follow(raw, followed)
