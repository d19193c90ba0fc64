"""What simulated workers hold of a waiting prompt, looked up again only when it may have changed."""

from collections.abc import Sequence

from penstock_router.index.matching import Known, match
from penstock_router.policy.demand import NOTHING_HELD, Deepest, deepest, first_divergent
from penstock_router.policy.facts import Match
from penstock_router.simulate.trace import TraceRequest


class Prompt:
    """One request's look-ups; what they found last stands in its attributes."""

    def __init__(self, request: TraceRequest, block_tokens: int) -> None:
        self.request = request
        self.matches: dict[str, Match] = {}
        self.hot: Deepest = NOTHING_HELD
        self.divergent: int | None = None
        self._block_tokens = block_tokens
        self._versions: tuple[int, int] | None = None

    def look(self, known: Known, places: Sequence[tuple[str, int]]) -> None:
        """Bring the attributes up to date."""
        versions, since = known.versions(), self._versions
        self._versions = versions
        chain, blocks = self.request.chain, self.request.blocks
        if since is not None and (versions == since or not known.touched(chain, since)):
            return
        self.matches = match(known, chain, places, self._block_tokens)
        self.hot = deepest(blocks, self.matches, self._block_tokens)
        self.divergent = first_divergent(blocks, self.hot)
