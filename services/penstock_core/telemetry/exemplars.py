"""Which measurement stands for each bucket of a histogram: the last one, at little cost.

The SDK's reservoirs do the same behind locks and by comparing bounds one by one, for every measurement of a
traced request. Here it is one store; what an exemplar looks like is made when somebody collects.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, TypeAlias

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import Exemplar, ExemplarReservoir
from opentelemetry.trace import SpanContext
from opentelemetry.util.types import Attributes

_Seen: TypeAlias = tuple[float, int, Attributes, SpanContext]


class LatestExemplars(ExemplarReservoir):
    """The last measurement of each bucket since the last collection; one bucket without bounds."""

    def __init__(self, boundaries: Sequence[float] = (), **_: Any) -> None:
        self._boundaries = boundaries
        self._seen: dict[int, _Seen] = {}

    def offer(
        self, value: float, time_unix_nano: int, attributes: Attributes, context: Context
    ) -> None:
        """A measurement that is worth one."""
        span = trace.get_current_span(context).get_span_context()
        self._seen[bisect_left(self._boundaries, value)] = value, time_unix_nano, attributes, span

    def collect(self, point_attributes: Attributes) -> list[Exemplar]:
        """What was kept, bucket by bucket, and begin anew.

        A measurement that comes from another thread just now is in this collection, in the next or in none.
        """
        seen, self._seen = self._seen, {}
        return [_exemplar(kept, point_attributes or {}) for _, kept in sorted(seen.items())]


def _exemplar(kept: _Seen, known: Any) -> Exemplar:
    value, time_unix_nano, attributes, span = kept
    told = {key: one for key, one in (attributes or {}).items() if key not in known}
    trace_id, span_id = (span.trace_id, span.span_id) if span.is_valid else (None, None)
    return Exemplar(told, value, time_unix_nano, span_id, trace_id)
