"""``penstock bench ...``: figures of the parts, each alone."""

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock_cli.bench.engine import EngineBench, EngineLoad, machine_row, measure
from penstock_cli.bench.index import IndexLoad, measure_index
from penstock_cli.bench.speculation import (
    SpeculationLoad,
    SpeculationRow,
    code_prompts,
    measure_speculation,
)
from penstock_cli.execution import failures_told, notes, output, run
from penstock_cli.options import Json, Quantization, Weights
from penstock_cli.views.benches import engine_view, index_view
from penstock_cli.views.documents import to_json
from penstock_engine.api import Engine
from penstock_models import DEMO, DEMO_DRAFT
from penstock_text.source import own_draft, resolve_model
from penstock_text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from penstock_engine.native.settings import NativeSettings

app = typer.Typer(help="Measure the parts, each alone.", no_args_is_help=True)

_DRAFT_HELP = "Small model with the same tokenizer; the demo model brings one."
_THREADS_HELP = "That compute a step; 0: by CPUs."


@app.command(epilog="Example: penstock bench index --blocks 256,8192 --workers 64 --json")
def index(
    blocks: Annotated[str, typer.Option(help="Of a prompt, with commas.")] = "16,256,2048,8192",
    workers: Annotated[str, typer.Option(help="Numbers of workers, with commas.")] = "8,64,512",
    indexed: Annotated[int, typer.Option(min=0, help="Other blocks in the index.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions of each.")] = 50,
    *,
    as_json: Json = False,
) -> None:
    """Measure hashing, matching, storing, removing and deciding by blocks and workers."""
    load = IndexLoad(_numbers(blocks), _numbers(workers), indexed, rounds)
    with failures_told():
        bench = measure_index(load, _say)
    if as_json:
        rows = [asdict(cell) for cell in bench.measurements]
        output.out(to_json(rows), highlight=False)
    else:
        output.print(index_view(bench))


@app.command(epilog="Example: penstock bench engine --batches 1,4,16 --new-tokens 64 --json")
def engine(
    model: Annotated[str, typer.Option(help="'demo', a directory or a Hugging Face id.")] = "demo",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,4,16,32",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = 256,
    new_tokens: Annotated[int, typer.Option(min=2, help="Of each answer.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Medians are taken over these.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help=_THREADS_HELP)] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    quantization: Quantization = Weights.NONE,
    kernel: Annotated[str, typer.Option(help="auto, fused or eager.")] = "auto",
    *,
    draft_model: Annotated[str, typer.Option(help=_DRAFT_HELP)] = "",
    as_json: Json = False,
) -> None:
    """Measure TTFT, TPOT and tokens a second by batch, prefill, and what caching and drafts save.

    Each against what the machine itself can do at best, measured in the same run.
    """
    load = EngineLoad(_numbers(batches), prompt_tokens, new_tokens, repeats)
    chosen = _Chosen(threads or None, dtype, quantization, kernel)
    bench = run(_measured(model, draft_model or own_draft(model), chosen, load))
    if as_json:
        document = asdict(bench)
        document["cache"]["speedup"] = bench.cache.speedup
        document["shared"]["speedup"] = bench.shared.speedup
        output.out(to_json(document), highlight=False)
    else:
        output.print(engine_view(bench))


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Settings of the engine that a benchmark's options name."""

    threads: int | None
    dtype: str
    quantization: str
    kernel: str


async def _measured(model: str, draft: str, chosen: _Chosen, load: EngineLoad) -> EngineBench:
    path = resolve_model(model, weights=True)
    # Threads that spin at barriers starve the neighbours; torch reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _say("loading the engine")
    # Imported here, behind that environment: it takes seconds.
    from penstock_engine.native.ceilings import measure_ceilings  # noqa: PLC0415
    from penstock_engine.native.engine import NativeEngine  # noqa: PLC0415
    from penstock_engine.native.settings import NativeSettings  # noqa: PLC0415

    most = max(*load.batches, load.shared.requests)
    settings = NativeSettings(
        path,
        max_batch=most,
        max_waiting=most,
        threads=chosen.threads,
        dtype=chosen.dtype,
        quantization=chosen.quantization,
        kernel=chosen.kernel,
    )
    _say("measuring the machine")
    ceilings = await asyncio.to_thread(measure_ceilings, settings)
    measured = NativeEngine(settings)
    await measured.start()
    try:
        bench = await measure(measured, load, _say)
    finally:
        await measured.close()
    speculation: list[SpeculationRow] = []
    for subject in speculated(path, resolve_model(draft, weights=True) if draft else None):
        speculation += await _speculation(settings, subject, load.repeats)
    machine = machine_row(bench, ceilings)
    return replace(bench, speculation=tuple(speculation), machine=machine)


@dataclass(frozen=True, slots=True)
class Speculated:
    """A model that speculation is measured on, and what drafts for it."""

    model: Path
    draft: Path | None


def speculated(model: Path, draft: Path | None) -> list[Speculated]:
    """The model, if it has a tokenizer to read code with; without a draft model also the demo's pair."""
    found = [Speculated(model, draft)] if (model / "tokenizer.json").is_file() else []
    if draft is None:
        found.append(Speculated(DEMO, DEMO_DRAFT))
    return found


async def _speculation(
    settings: "NativeSettings", subject: Speculated, repeats: int
) -> tuple[SpeculationRow, ...]:
    """Engines that differ in speculation alone."""
    from penstock_engine.native.engine import NativeEngine  # noqa: PLC0415

    load, draft = SpeculationLoad(repeats=repeats), subject.draft
    most = max(load.batches)
    settings = replace(
        settings, model=subject.model, max_batch=most, max_waiting=most, draft_model=draft
    )
    kinds = ("none", "ngram", "draft", "auto") if draft else ("none", "ngram")
    prompts = code_prompts(Tokenizer.load(settings.model).encode, load)
    async with AsyncExitStack() as stack:
        engines: dict[str, Engine] = {}
        for kind in kinds:
            one = NativeEngine(replace(settings, speculation=kind))
            stack.push_async_callback(one.close)
            await one.start()
            engines[kind] = one
        rows = await measure_speculation(engines, prompts, load, _say)
        return tuple(replace(row, model=subject.model.name) for row in rows)


def _say(part: str) -> None:
    notes.print(part, style="dim")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{text!r} is no list of numbers like 1,2,4")
    return numbers
