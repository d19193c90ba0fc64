"""Constraints followed by the kernel's threads, between steps and beside them.

Owns a sample's follower (``Follower``, instead of ``GrammarMatcher``) and who has one among the rows of a
step (``FollowedMasks``, instead of ``Masks``). A follower hears of its token within the draw or, on
a thread that idles until the next step, beside what Python does then, and finds out there what may come next;
nothing of that needs the GIL. Knows no logits.
"""

import weakref
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from ctypes import c_int64

import numpy as np

from penstock_engine.native.fused.draw import ENDED
from penstock_engine.native.fused.library import CFollower, CGrammar, Following, Library
from penstock_engine.native.scheduling.plan import StepPlan
from penstock_engine.native.structured.grammars import Followed
from penstock_engine.native.structured.llguidance_c import CMatcher, CTokenizer, GrammarLibrary
from penstock_engine.native.structured.masks import FollowedRows, RowMasks, Run, runs_of
from penstock_engine.native.structured.vocabulary import Cutter

_BUSY = -1
_UNTOLD, _TOKEN = -1, 0xFFFFFFFF
"""What a follower heard is negative until it heard of its token; see ``Follower::heard`` in the kernel."""
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
        "__weakref__", "_following", "_heard", "_raw", "address", "ended", "num_foreseen",
    )  # fmt: skip

    def __init__(self, leavers: "Leavers", raw: CMatcher, address: int, followed: Followed) -> None:
        self._following = following = leavers.following
        self._heard = c_int64.from_address(following.heard(address))
        self._raw = raw  # lives at least as long
        self.address = address
        self.ended = followed.ended
        """See ``GrammarMatcher.ended``."""
        self.num_foreseen = 0
        """Tokens behind the last one told that alone may follow."""
        weakref.finalize(self, leavers.end, address, followed.done)

    def advance(self, token: int) -> None:
        """The sample has one token more."""
        heard = self._heard.value
        if heard == token:  # as most are: it was told, and nothing came of it
            self._heard.value = _UNTOLD
            self.num_foreseen = 0
            return
        while heard < 0:
            heard = self._following.hear(self.address, token)
            if heard < 0:
                self._following.wait(self.address)
        self._heard.value = _UNTOLD
        assert heard & _TOKEN == token, "a sample goes on with another token than was drawn for it"
        self.num_foreseen = heard >> 40
        if state := heard >> 32 & 0xFF:
            self.ended = ENDED[state]

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


class Leavers:
    """Followers that nobody holds any more. A thread may be at the chore of one: it is ended later then.

    Not waited for, since that may be the thread which finds it unused: a chore can run Python.
    """

    def __init__(self, following: Following) -> None:
        self.following = following
        self._waiting: deque[tuple[int, Callable[[int], None]]] = deque()

    def end(self, address: int, done: Callable[[int], None]) -> None:
        """Of a follower that nobody holds; ``done`` keeps what it follows until then. From any thread."""
        self._waiting.append((address, done))
        self.retry()

    def retry(self) -> None:
        """End those that nobody is at any more. From any thread, also in the midst of itself."""
        for _ in range(len(self._waiting)):
            try:
                address, done = self._waiting.popleft()
            except IndexError:  # another thread was sooner
                return
            followed = self.following.end(address)
            if followed == _BUSY:
                self._waiting.append((address, done))
            else:
                done(followed)


class FollowedMasks:
    """Collects masks from followers; makes them, too. Closed by its owner."""

    def __init__(self, library: Library, grammars: GrammarLibrary, vocab_size: int) -> None:
        self._following = library.following
        self._leavers = Leavers(library.following)
        self._grammars = grammars
        self._vocab_size = vocab_size
        self._words = vocab_size // _WORD_BITS + 1
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
        self._leavers.retry()
        address = self._following.create(self.chores, told)
        return Follower(self._leavers, raw, address, followed)

    def begin(self, plan: StepPlan) -> Callable[[], FollowedRows] | None:
        """See ``StepMasks.begin``."""
        if plan.has_drafts or plan.num_prefill_tokens:
            return self._ask(runs_of(plan.chunks, Follower), plan)
        matchers = [sample.matcher for chunk in plan.chunks for sample in chunk.draws]
        if not any(matchers):
            return None
        addresses = [found.address if isinstance(found, Follower) else 0 for found in matchers]
        rows = FollowedRows(array("Q", addresses), None, self._collect)
        return lambda: rows

    def _ask(
        self, runs: Sequence[Run[Follower]], plan: StepPlan
    ) -> Callable[[], FollowedRows] | None:
        """Of some perhaps nothing is known, or not what may follow their drafts: begin on that now."""
        if not runs:
            return None
        addresses = array("Q", [run.matcher.address for run in runs])
        counts = array("i", [len(run.drafts) for run in runs])
        drafts = array("I", [draft for run in runs for draft in run.drafts])
        self._following.ask(
            addresses.buffer_info()[0], counts.buffer_info()[0], drafts.buffer_info()[0], len(runs)
        )
        size = sum(len(chunk.draws) + len(chunk.drafts) for chunk in plan.chunks)
        followers, behind = array("Q", bytes(8 * size)), array("i", [-1]) * size
        for run in runs:
            for count in range(1 + len(run.drafts)):
                followers[run.row + count] = run.matcher.address
                behind[run.row + count] = count if run.drafts else -1
        rows = FollowedRows(followers, behind, self._collect)
        return lambda: rows

    def close(self) -> None:
        """End what could not be ended before; nobody computes any more."""
        self._leavers.retry()

    def _collect(self, rows: FollowedRows) -> RowMasks:
        which = [row for row, address in enumerate(rows.followers) if address]
        followers = array("Q", [rows.followers[row] for row in which])
        behind = array("i", [rows.drafts[row] if rows.drafts else -1 for row in which])
        masks = np.empty((len(which), self._words), dtype=np.uint32)
        ends, place = array("b", bytes(len(which))), masks.ctypes.data
        asked = (followers.buffer_info()[0], behind.buffer_info()[0], len(which))
        self._following.answer(*asked, place, ends.buffer_info()[0])
        ended = {row: ENDED[code] for row, code in zip(which, ends, strict=True) if code}
        return RowMasks(which, masks, ended, place)


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

    def reset(self, raw: CMatcher) -> bool:
        """See ``Compiler.reset``."""
        return raw.reset()

    def matcher(self, raw: CMatcher, followed: Followed) -> Follower:
        """See ``Compiler.matcher``."""
        return self._masks.follow(raw, followed)
