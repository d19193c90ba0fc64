"""How fast workers of one kind prefill, for those that have not shown it themselves yet.

Owns a fit for each kind: workers of one model, engine and device. Pure.
"""

from penstock_router.fit import PrefillFit
from penstock_router.frames import WorkerFacts

PRIOR_BASE_S = 0.002
_PRIOR_SLOPE_S = 1 / 4000
_MIN_SAMPLES = 5
_MOST_KINDS = 256


def unmeasured() -> PrefillFit:
    """A fit that nothing was added to yet."""
    return PrefillFit(PRIOR_BASE_S, _PRIOR_SLOPE_S)


def is_known(fit: PrefillFit) -> bool:
    """Whether it rests on enough measurements to be believed."""
    return fit.samples >= _MIN_SAMPLES


class Kinds:
    """A fit for each kind of worker; the oldest is forgotten when there are very many."""

    def __init__(self) -> None:
        self._fits: dict[tuple[str, str, str], PrefillFit] = {}

    def of(self, facts: WorkerFacts) -> PrefillFit:
        """The fit that all workers of this one's kind share."""
        kind = (facts.model_revision, facts.engine, facts.device)
        fit = self._fits.get(kind)
        if fit is None:
            if len(self._fits) >= _MOST_KINDS:
                del self._fits[next(iter(self._fits))]
            fit = self._fits[kind] = unmeasured()
        return fit
