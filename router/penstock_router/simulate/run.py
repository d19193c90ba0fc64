"""Several policies over one trace, one after the other."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock_router.simulate.catalogue import Setup, build
from penstock_router.simulate.fleet import Fleet
from penstock_router.simulate.report import Result, result
from penstock_router.simulate.trace import TraceRequest

Tell = Callable[[str, int], None]
"""Hears the policy and how many requests have come."""


@dataclass(frozen=True, slots=True)
class Run:
    """Which policies, what comes, over which workers."""

    policies: Sequence[str]
    trace: Sequence[TraceRequest]
    setup: Setup


def simulate_all(run: Run, tell: Tell) -> list[Result]:
    """A result for each policy, in their order."""
    return [_simulate(run, name, tell) for name in run.policies]


def _simulate(run: Run, name: str, tell: Tell) -> Result:
    began = time.perf_counter()
    fleet = Fleet(run.setup.models, build(name, run.setup))
    outcome = fleet.run(run.trace, lambda arrived: tell(name, arrived))
    return result(name, outcome, time.perf_counter() - began)
