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

import numpy as np

from penstock_engine.api import FinishReason
from penstock_engine.native.fused.library import CFollower, CGrammar, Following, Library
from penstock_engine.native.scheduling.plan import Chunk
from penstock_engine.native.scheduling.request import Drawn
from penstock_engine.native.structured.grammars import Followed
from penstock_engine.native.structured.llguidance_c import CMatcher, CTokenizer, GrammarLibrary
from penstock_engine.native.structured.masks import RowMasks, Run, runs_of
from penstock_engine.native.structured.vocabulary import Cutter

_BUSY = -1
_ENDED = {1: FinishReason.STOP, 2: FinishReason.CONSTRAINT}
"""By what the kernel calls complete and broken; 0 is open."""
_WORD_BITS = 32
_FORESIGHT = 16
"""Tokens that are looked for where a constraint leaves no choice; no step checks more."""

_GRAMMAR = {
    "mask": "llg_matcher_compute_mask_into",
    "consume": "llg_matcher_consume_token",
    "validate": "llg_matcher_validate_tokens",
    "rollback": "llg_matcher_rollback",
    "stopped": "llg_matcher_is_stopped",
    "failed": "llg_matcher_is_error",
    "forced": "llg_matcher_compute_ff_tokens",
}


class Follower:
    """A constraint as far as one sample has followed it. Owned by the step thread once made."""

    __slots__ = (
        "__weakref__", "_following", "_raw", "address", "ended", "fresh", "num_foreseen", "told",
    )  # fmt: skip

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
        self.told: tuple[int, int] | None = None
        """The token that was drawn, if it was told already, and what came of that."""
        self.num_foreseen = 0
        """Tokens behind the last one told that alone may follow."""
        weakref.finalize(self, _end, following, address, raw)

    def advance(self, token: int) -> None:
        """The sample has one token more."""
        if self.told is not None:
            told, state = self.told
            assert told == token, "a sample goes on with another token than was drawn for it"
            self.told = None
        else:
            state = self._follow(token)
        while state == _BUSY:
            self._following.wait(self.address)
            state = self._follow(token)
        self.fresh = False
        if state:
            self.ended = _ENDED[state]

    def _follow(self, token: int) -> int:
        told = array("Q", [self.address]), array("i", [token])
        state, foreseen = array("b", [0]), array("i", [0])
        address, tokens, to, count = (a.buffer_info()[0] for a in (*told, state, foreseen))
        self._following.follow_each(address, tokens, 1, to, count)
        self.num_foreseen = foreseen[0]
        return state[0]

    def permitted(self, tokens: Sequence[int]) -> int:
        """How many of these tokens could follow, in order."""
        ids = array("I", tokens)
        found = _BUSY
        while found == _BUSY:
            self._following.wait(self.address)
            found = self._following.permitted(self.address, ids.buffer_info()[0], len(ids))
        return found

    def foreseen(self, limit: int) -> Sequence[int]:
        """See ``Matcher.foreseen``."""
        if not self.num_foreseen:
            return ()
        tokens = array("I", bytes(4 * _FORESIGHT))
        self._following.foretell(self.address, tokens.buffer_info()[0])
        return tokens[: min(self.num_foreseen, limit)]


def _end(following: Following, address: int, _raw: CMatcher) -> None:
    """The follower first: what it follows is kept until then by being named here."""
    following.end(address)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Rows of some followers, numbered as the step's draws are; drafts of each if not all were known."""

    followers: Sequence[Follower]
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
        self._make_room(1)
        self._asked: _Asked | None = None
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
            foresight=0 if request.speculation is False else _FORESIGHT,
        )
        address = self._following.create(self.chores, told)
        return Follower(self._following, raw, address, followed.ended)

    def begin(self, chunks: Sequence[Chunk]) -> Callable[[], RowMasks] | None:
        """See ``StepMasks.begin``; valid until the next step."""
        followers: list[Follower] = []
        rows: list[int] = []
        row, is_known = 0, True
        for chunk in chunks:  # a plain loop: in a small model's step each microsecond is seen
            for sample in chunk.draws:
                matcher = sample.matcher
                if isinstance(matcher, Follower):
                    followers.append(matcher)
                    rows.append(row)
                    is_known = is_known and not (matcher.fresh or chunk.drafts)
                row += 1
            row += len(chunk.drafts)
        self._asked = None
        if not followers:
            return None
        if is_known:
            addresses = array("Q", [follower.address for follower in followers])
            self._asked = _Asked(followers, rows, addresses)
        else:
            self._asked = self._ask(runs_of(chunks, Follower))
        return self._collect

    def drew(self, drawn: Sequence[Drawn]) -> None:
        """See ``StepMasks.drew``: followers hear of their tokens all at once, and before anybody else."""
        asked = self._asked
        if asked is None or asked.counts is not None:
            return
        count = len(asked.rows)
        self._have_room(count)
        tokens, states, foreseen = self._tokens, self._states, self._foreseen
        for place, row in enumerate(asked.rows):
            ids = drawn[row].token_ids
            tokens[place] = ids[0] if ids else -1
        addresses, (told, came, ahead) = asked.addresses.buffer_info()[0], self._heard
        self._following.follow_each(addresses, told, count, came, ahead)
        for place, follower in enumerate(asked.followers):
            if tokens[place] >= 0:
                follower.told = tokens[place], states[place]
                follower.num_foreseen = foreseen[place]

    def _ask(self, runs: Sequence[Run[Follower]]) -> _Asked:
        """Of some nothing is known, or not what may follow their drafts."""
        addresses = array("Q", [run.matcher.address for run in runs])
        counts = array("i", [len(run.drafts) for run in runs])
        drafts = array("I", [draft for run in runs for draft in run.drafts])
        self._following.ask(
            addresses.buffer_info()[0], counts.buffer_info()[0], drafts.buffer_info()[0], len(runs)
        )
        rows = [run.row + i for run in runs for i in range(1 + len(run.drafts))]
        return _Asked([run.matcher for run in runs], rows, addresses, counts)

    def close(self) -> None:
        """Nothing is held that collecting this does not free."""

    def _collect(self) -> RowMasks:
        asked = self._asked
        assert asked is not None, "masks are collected that nobody asked for"
        self._have_room(len(asked.rows))
        place, size = asked.addresses.buffer_info()
        counts = None if asked.counts is None else asked.counts.buffer_info()[0]
        told = (place, counts, size, *self._places)
        ended = self._following.known(*told, 0)
        if ended == _BUSY:
            ended = self._following.answer(*told, 1)
        ends = {}
        if ended:
            codes = zip(asked.rows, self._ends, strict=False)
            ends = {row: _ENDED[code] for row, code in codes if code}
        return RowMasks(asked.rows, self._masks, ends, self._places[0])

    def _have_room(self, rows: int) -> None:
        if rows > len(self._ends):
            self._make_room(rows)

    def _make_room(self, rows: int) -> None:
        """What the kernel reads and writes at each step, at addresses that stay."""
        self._masks = np.empty((rows, self._words), dtype=np.uint32)
        self._ends = array("b", bytes(rows))
        self._places = (self._masks.ctypes.data, self._ends.buffer_info()[0])
        self._tokens = array("i", bytes(4 * rows))
        self._states, self._foreseen = array("b", bytes(rows)), array("i", bytes(4 * rows))
        told, came, ahead = self._tokens, self._states, self._foreseen
        self._heard = tuple(numbers.buffer_info()[0] for numbers in (told, came, ahead))


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
