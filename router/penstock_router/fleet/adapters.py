"""How long a request would wait on a worker for its LoRA adapter.

By what the worker says it has in memory, and by what this router has just sent there, which the worker
brings into memory and has not told yet. Pure; the caller brings the clock.
"""

import math
from collections.abc import Iterable

from penstock_router.frames import LoadReport

# Longer after its time an adapter that is not reported was not loaded, or is gone again.
_GRACE_S = 2.0


class Adapters:
    """The adapters of one worker that are on their way into its memory."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def asked(self, name: str, report: LoadReport, now: float) -> None:
        """A request with this adapter goes there: from now on it is being loaded, if it has to be."""
        if not name or name in report.loaded_adapters:
            return
        coming = {n: due for n, due in self._due.items() if now <= due + _GRACE_S}
        self._due = {name: now + report.adapter_load_s} | coming

    def wait_s(self, name: str, report: LoadReport, now: float, usual_s: float = 0.0) -> float:
        """Seconds until it is in memory; ``usual_s`` is a load where this worker has not measured one."""
        if name in report.loaded_adapters:
            return 0.0
        load_s = report.adapter_load_s or usual_s
        due = self._due.get(name)
        if due is None or now > due + _GRACE_S:
            return load_s
        return min(max(due - now, 0.0), load_s)


def usual_load_s(measured: Iterable[float]) -> float:
    """What a load takes on workers that have measured it; 0 if none has."""
    known = [seconds for seconds in measured if seconds]
    return math.fsum(known) / len(known) if known else 0.0
