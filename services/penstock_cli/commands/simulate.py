"""``penstock simulate``: a trace through simulated workers under one or more policies."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from penstock_cli.commands.replay import Change, replay
from penstock_cli.execution import failures_told, output
from penstock_cli.options import Json
from penstock_cli.views.documents import to_json
from penstock_cli.views.plots import save_plots
from penstock_cli.views.simulations import simulating, simulation_view
from penstock_core.errors import InvalidRequest
from penstock_router.policy.cost import CostParams
from penstock_router.simulate import catalogue
from penstock_router.simulate.catalogue import Setup
from penstock_router.simulate.engine import EngineModel
from penstock_router.simulate.recorded import read_requests
from penstock_router.simulate.report import Result
from penstock_router.simulate.run import Run, simulate_all
from penstock_router.simulate.trace import TraceRequest

EPILOG = (
    "Example: penstock simulate trace.jsonl --workers 8 --policy penstock --policy dynamo --json"
)
_TRACE_HELP = (
    "Mooncake's format: timestamp (ms), input_length, output_length, hash_ids; or a decision log."
)
_POLICY_HELP = f"Repeat to compare: {', '.join(catalogue.NAMES)}."
_ABLATE_HELP = f"Switch a term of Penstock's cost off: {', '.join(catalogue.TERMS)}."
_COST_HELP = "Change Penstock's cost: name=value, with commas, as in PENSTOCK_ROUTER_POLICY."
_SPEEDS_HELP = "Relative speeds, with commas, over the workers in turn; 1 for all alike."


def simulate(
    trace: Annotated[Path | None, typer.Argument(help=_TRACE_HELP)] = None,
    workers: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    cache_blocks: Annotated[int, typer.Option(min=1, help="KV blocks of a worker.")] = 3000,
    block_tokens: Annotated[int, typer.Option(min=1, help="Of the trace's blocks.")] = 512,
    prefill_rate: Annotated[float, typer.Option(min=1, help="Prompt tokens a second.")] = 8000.0,
    step_ms: Annotated[float, typer.Option(min=0.001, help="Of a decode step.")] = 25.0,
    max_active: Annotated[int, typer.Option(min=1, help="Requests in a batch.")] = 64,
    speedup: Annotated[float, typer.Option(min=1e-3, help="Of the arrivals.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal results.")] = 0,
    policy: Annotated[list[str] | None, typer.Option(help=_POLICY_HELP)] = None,
    ablate: Annotated[list[str] | None, typer.Option(help=_ABLATE_HELP)] = None,
    cost: Annotated[str, typer.Option(help=_COST_HELP)] = "",
    attention: Annotated[float, typer.Option(min=0, help="Extra cost of 1 token behind 1.")] = 0.0,
    step_per_request_ms: Annotated[float, typer.Option(min=0, help="Of the batch.")] = 0.0,
    step_per_token_us: Annotated[float, typer.Option(min=0, help="Of all contexts.")] = 0.0,
    slowdown: Annotated[float, typer.Option(min=0, help="Of prefill by a full batch.")] = 0.0,
    stall: Annotated[float, typer.Option(min=0, max=0.99, help="Of decoding by prefill.")] = 0.0,
    accepted: Annotated[float, typer.Option(min=1, help="Tokens of a speculative step.")] = 1.0,
    speeds: Annotated[str, typer.Option(help=_SPEEDS_HELP)] = "1",
    plot: Annotated[Path | None, typer.Option(help="Directory to save plots in.")] = None,
    replay_log: Annotated[
        Path | None, typer.Option("--replay", help="Decision log to decide anew, not to simulate.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Play a trace through simulated workers, and compare routing policies by what users feel."""
    change = Change(cost, tuple(ablate or ()))
    if replay_log is not None:
        if trace is not None or policy:
            raise typer.BadParameter("--replay decides a log anew: neither a trace nor --policy")
        replay(replay_log, change, as_json=as_json)
        return
    if trace is None:
        raise typer.BadParameter("a trace is needed, or --replay")
    with failures_told():
        model = EngineModel(
            cache_blocks=cache_blocks, block_tokens=block_tokens, max_active=max_active,
            prefill_rate=prefill_rate, attention=attention, slowdown=slowdown, stall=stall,
            step_s=step_ms / 1000, step_per_request_s=step_per_request_ms / 1000,
            step_per_token_s=step_per_token_us / 1e6, tokens_per_step=accepted,
        )  # fmt: skip
        names = [catalogue.canonical(name) for name in policy or [catalogue.OWN]]
        setup = Setup(_fleet(model, workers, speeds), seed, change.of(CostParams()))
        results = _play(names, read_requests(trace, block_tokens, speedup), setup)
        if plot is not None:
            save_plots(results, plot)
    _show(results, setup, as_json=as_json)


def _play(names: list[str], requests: list[TraceRequest], setup: Setup) -> list[Result]:
    with simulating(names, len(requests)) as tell:
        return simulate_all(Run(names, requests, setup), tell)


def _show(results: list[Result], setup: Setup, *, as_json: bool) -> None:
    if as_json:
        output.out(to_json([asdict(each.summary) for each in results]), highlight=False)
    else:
        output.print(simulation_view(results, setup))


def _fleet(model: EngineModel, workers: int, speeds: str) -> tuple[EngineModel, ...]:
    try:
        factors = [float(part) for part in speeds.split(",")]
    except ValueError:
        factors = []
    if not factors or not all(0 < factor < math.inf for factor in factors):
        raise InvalidRequest(f"{speeds!r} is no list of speeds like 1,0.5", field="speeds")
    return tuple(model.at_speed(factors[n % len(factors)]) for n in range(workers))
