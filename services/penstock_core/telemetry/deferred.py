"""Measurements that are noted at once and summed up later, many in a row.

The SDK sums each up as it comes. Among all that answers a request that code is never in the processor's
caches, and takes several times what it takes in a loop. So here it is a loop, which runs before anybody
collects, and whenever there is enough for it. An exemplar is the span that was current at the measurement;
its time is that of the summing up.

Must not know what is measured, nor who collects.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from penstock_core.telemetry import semconv as sc

# Summing these up takes about half a millisecond, in which nothing else is done.
_MOST = 64
_Labels: TypeAlias = Mapping[str, str]
_Sum: TypeAlias = Callable[[float, _Labels, Context], None]
Measure: TypeAlias = Callable[[float, _Labels], None]
"""Takes a value with its labels, which are not to be changed afterwards."""


class Deferred:
    """The measurements of one meter's users that are not summed up yet."""

    def __init__(self, meter: Meter, most: int = _MOST) -> None:
        self._most = most
        self._waiting: deque[tuple[_Sum, float, _Labels, Context]] = deque()
        # Callbacks are called first when metrics are collected. It has nothing to tell itself.
        meter.create_observable_gauge(sc.DEFERRED, [self._collected])

    def measure(self, into: _Sum) -> Measure:
        """What defers to an instrument's ``record`` or ``add``."""
        waiting, now = self._waiting, otel_context.get_current

        def note(value: float, labels: _Labels) -> None:
            waiting.append((into, value, labels, now()))
            if len(waiting) >= self._most:
                self.settle()

        return note

    def settle(self) -> None:
        """Sum up what waits; from any thread."""
        while True:
            try:
                into, value, labels, context = self._waiting.popleft()
            except IndexError:  # empty, or another thread has taken the last
                return
            into(value, labels, context)

    def _collected(self, _options: CallbackOptions) -> Iterable[Observation]:
        self.settle()
        return ()
