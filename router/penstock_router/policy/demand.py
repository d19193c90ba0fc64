"""Hot prefixes: how often each is asked for, and which workers should hold a copy.

A prefix is named by the last block of a prompt that anybody holds. Its demand is the prefill time a
second that requests behind it bring; where its holders cannot bear that at a sane utilisation, the
next workers of its rendezvous order are to hold it as well. The order is the same in every router,
so copies are made on the same workers. Pure; the caller brings the clock.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from penstock_router.policy.facts import Match

_WINDOW_S = 30.0
# What came sooner is counted as if it had taken this long, since two requests are no stream yet.
_LEAST_S = 5.0
_MOST_KEYS = 256
_UTILISATION = 0.7
_NOBODY: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Rate:
    """Seconds of work a second, fading; of a prefix that is new, over the time since it came up."""

    since: float
    faded: float = 0.0
    at: float = 0.0

    def now(self, now: float) -> float:
        watched_s = max(now - self.since, _LEAST_S)
        return self._faded(now) / -math.expm1(-watched_s / _WINDOW_S)

    def add(self, work_s: float, now: float) -> None:
        self.faded, self.at = self._faded(now) + work_s / _WINDOW_S, now

    def _faded(self, now: float) -> float:
        return self.faded * math.exp(-max(now - self.at, 0.0) / _WINDOW_S)


class Deepest(NamedTuple):
    """A block of a prompt, how many blocks lead to it and itself, and who has them; nobody: None."""

    key: int | None
    blocks: int
    holders: frozenset[str]


NOTHING_HELD = Deepest(None, 0, _NOBODY)


class PrefixDemand:
    """The prefixes that were asked for most in the last half minute."""

    def __init__(self) -> None:
        self._rates: dict[int, _Rate] = {}

    def __len__(self) -> int:
        """Prefixes that are kept."""
        return len(self._rates)

    def __contains__(self, key: int | None) -> bool:
        """Whether this prefix is one of them."""
        return key in self._rates

    def observe(self, key: int, work_s: float, now: float) -> None:
        """A request behind this prefix came, and will cost so much where it is held.

        The first one only begins the watch: one request has no rate.
        """
        rate = self._rates.get(key)
        if rate is None:
            self._rates[key] = _Rate(now)
        else:
            rate.add(work_s, now)
        if len(self._rates) > 2 * _MOST_KEYS:
            hottest = sorted(self._rates, key=lambda k: -self._rates[k].now(now))[:_MOST_KEYS]
            self._rates = {k: self._rates[k] for k in hottest}

    def replicas(
        self, key: int | None, holders: frozenset[str], workers: Sequence[str], now: float
    ) -> frozenset[str]:
        """Workers beyond the holders that should have a copy; nobody while these suffice."""
        rate = self._rates.get(key) if key is not None else None
        if rate is None or not holders:
            return _NOBODY
        missing = math.ceil(rate.now(now) / _UTILISATION) - len(holders)
        if missing <= 0:
            return _NOBODY
        others = [name for name in workers if name not in holders]
        others.sort(key=lambda n: xxhash.xxh3_64_intdigest(n.encode(), _seed(key)), reverse=True)
        return frozenset(others[:missing])


def _seed(key: int | None) -> int:
    return (key or 0) & (2**64 - 1)


def deepest(hashes: Sequence[int], matches: Mapping[str, Match], block_tokens: int) -> Deepest:
    """The last block of a prompt that anybody holds or computes, and who does."""
    depth, holders = 0, list[str]()
    for name, match in matches.items():
        here = match.matched_tokens + match.pending_tokens
        if here > depth:
            depth, holders = here, [name]
        elif here == depth:
            holders.append(name)
    count = depth // block_tokens
    if not 0 < count <= len(hashes):
        return NOTHING_HELD
    return Deepest(hashes[count - 1], count, frozenset(holders))


def first_divergent(hashes: Sequence[int], held: Deepest) -> int | None:
    """The first block of a prompt that no worker holds or computes; None if all are held."""
    return hashes[held.blocks] if held.blocks < len(hashes) else None
