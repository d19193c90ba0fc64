"""Numbers learned while running: smoothed averages, a line fitted online, a utilisation.

Pure arithmetic; the caller brings the clock.
"""

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Ewma:
    """An exponentially weighted mean of samples."""

    value: float
    weight: float = 0.1

    def add(self, sample: float) -> None:
        """Take one sample in."""
        self.value += self.weight * (sample - self.value)


class LineFit:
    """``seconds = base + slope * tokens``, by least squares whose past fades with each sample.

    Two pseudo-samples carry the prior until real ones outweigh them, so the fit is defined from
    the start and when all samples have the same size. Neither coefficient goes below zero.

    Source: recursive least squares with a forgetting factor, in its sufficient statistics.
    """

    _FORGET = 0.96
    _PRIOR_TOKENS = 1024.0
    _PRIOR_WEIGHT = 0.1

    def __init__(self, base_s: float, slope_s: float) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self.samples = 0
        self._take(0.0, base_s, self._PRIOR_WEIGHT)
        far = self._PRIOR_TOKENS
        self._take(far, base_s + slope_s * far, self._PRIOR_WEIGHT)
        self.base_s, self.slope_s = base_s, slope_s

    def add(self, tokens: float, seconds: float) -> None:
        """Take one measurement in."""
        self._n *= self._FORGET
        self._x *= self._FORGET
        self._y *= self._FORGET
        self._xx *= self._FORGET
        self._xy *= self._FORGET
        self._take(tokens, seconds)
        self.samples += 1
        self._solve()

    def predict(self, tokens: float) -> float:
        """Seconds for this many tokens; none need none."""
        return self.base_s + self.slope_s * tokens if tokens > 0 else 0.0

    def _take(self, tokens: float, seconds: float, weight: float = 1.0) -> None:
        self._n += weight
        self._x += weight * tokens
        self._y += weight * seconds
        self._xx += weight * tokens * tokens
        self._xy += weight * tokens * seconds

    def _solve(self) -> None:
        spread = self._n * self._xx - self._x * self._x
        # All samples of one size say nothing about the slope: put it all there, through zero.
        if spread < 1e-6 * self._n * self._xx or spread <= 0:
            self.base_s, self.slope_s = 0.0, self._xy / self._xx if self._xx else self.slope_s
            return
        slope = max((self._n * self._xy - self._x * self._y) / spread, 0.0)
        base = (self._y - slope * self._x) / self._n
        if base < 0:
            base, slope = 0.0, max(self._xy / self._xx, 0.0)
        self.base_s, self.slope_s = base, slope


class PrefillFit:
    """``seconds = base + slope * U + pair * U * (N - U / 2)`` for U computed of N prompt tokens.

    A line, until the samples differ enough in context to tell attention from length; then least
    squares in all three, whose past fades with each sample. A coefficient below zero is none.

    Source: recursive least squares with a forgetting factor, in its sufficient statistics.
    """

    _FORGET = 0.98
    _MIN_SAMPLES = 20
    _MIN_SPREAD = 0.05
    # Pairs are counted by the thousand tokens, so that the sums are of one magnitude.
    _SCALE = 1e-3

    def __init__(self, base_s: float, slope_s: float) -> None:
        self._line = LineFit(base_s, slope_s)
        # Of base, slope, pair and seconds with one another: the upper half of a symmetric matrix.
        self._sums = (0.0,) * 9
        self.base_s, self.slope_s, self.pair_s = base_s, slope_s, 0.0

    @property
    def samples(self) -> int:
        """Measurements taken in."""
        return self._line.samples

    def add(self, computed: float, cached: float, seconds: float) -> None:
        """Take one measurement in."""
        self._line.add(computed, seconds)
        pairs, kept = computed * (cached + computed / 2) * self._SCALE, self._FORGET
        n, u, p, y, uu, up, uy, pp, py = self._sums
        self._sums = (
            n * kept + 1.0,
            u * kept + computed,
            p * kept + pairs,
            y * kept + seconds,
            uu * kept + computed * computed,
            up * kept + computed * pairs,
            uy * kept + computed * seconds,
            pp * kept + pairs * pairs,
            py * kept + pairs * seconds,
        )
        self.base_s, self.slope_s, self.pair_s = self._line.base_s, self._line.slope_s, 0.0
        if self.samples >= self._MIN_SAMPLES:
            self._solve()

    def _solve(self) -> None:
        """Prefer the three coefficients where all are possible, then those without a base."""
        n, u, p, y, uu, up, uy, pp, py = self._sums
        spread = uu * pp - up * up
        if spread < self._MIN_SPREAD * uu * pp:
            return
        whole = n * spread - u * (u * pp - p * up) + p * (u * up - p * uu)
        base = (y * spread - u * (uy * pp - py * up) + p * (uy * up - py * uu)) / whole
        if whole <= 0 or base < 0:
            base = 0.0
        uy, py = uy - base * u, py - base * p
        slope, pair = (uy * pp - py * up) / spread, (py * uu - uy * up) / spread
        if slope > 0 and pair > 0:
            self.base_s, self.slope_s, self.pair_s = base, slope, pair * self._SCALE


class Utilisation:
    """Share of the time that a resource was busy, over the last ``window_s`` seconds or so."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._rate = 0.0
        self._at = 0.0

    def add(self, busy_s: float, now: float) -> None:
        """It was busy this long, until now."""
        self._rate = self.value(now) + busy_s / self._window_s
        self._at = now

    def value(self, now: float) -> float:
        """The share now; may pass 1 for a moment."""
        return self._rate * math.exp(-max(now - self._at, 0.0) / self._window_s)
