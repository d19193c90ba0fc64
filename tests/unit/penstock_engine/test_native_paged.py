"""Keys read where they lie, and steps from static tensors, give what the gathering decoder gives."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penstock_engine.api import EngineRequest
from penstock_engine.native.cuda.graphs import GraphedDecoder, GraphRoom
from penstock_engine.native.execution.batching import BatchShape
from penstock_engine.native.execution.runner import EagerDecoder
from penstock_engine.native.models import read_config
from penstock_engine.native.models.decoder import Decoder
from penstock_engine.native.models.kv_tensors import KvShape, KvTensors
from penstock_engine.native.models.layers import RopeTable
from penstock_engine.native.models.paged import PagedKernel, PagedRows, attend_paged
from penstock_engine.native.models.quantization import preparation
from penstock_engine.native.models.weights import Checkpoint, WeightSource, load_weights
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Request, Sample
from penstock_testing.engines.checkpoints import write_checkpoint

BLOCK, PAGES = 4, 60
SPARE = PAGES - 1
TOKENS = [(5 * i * i + 3) % 250 for i in range(30)]
CPU = torch.device("cpu")


class Machine:
    """One checkpoint behind the gathering decoder, or the one that reads pages, on tensors of its own."""

    def __init__(self, model: Path, *, paged: bool, kernel: PagedKernel = attend_paged) -> None:
        config = read_config(model)
        shape = KvShape.of(config, BLOCK, 4)
        self.kv = KvTensors(shape, PAGES, torch.float32, CPU)
        with Checkpoint(model, torch.float32, CPU) as checkpoint:
            source = WeightSource(checkpoint, config)
            weights = load_weights(
                source, config.num_layers, preparation(torch.float32, CPU, int8=False)
            )
        rope = RopeTable(config.rope, config.head_dim, 256, torch.float32, CPU)
        self.decoder = Decoder(config, weights, rope, self.kv, kernel)
        heads = config.num_heads // config.num_kv_heads
        self.shape = BatchShape(BLOCK, heads, torch.float32, CPU, paged)
        self.eager = EagerDecoder(self.decoder, self.shape, 0, {})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("paged"))


def sequence(number: int, length: int, adapter: str = "") -> Sample:
    spec = EngineRequest("r", TOKENS[:length], 9, adapter=adapter)
    sample = Request(spec, 0, 0.0).samples[0]
    sample.pages = [(7 * number + 11 * i) % SPARE for i in range(-(-length // BLOCK))]
    return sample


def plans(samples: list[Sample]) -> list[StepPlan]:
    """A prefill of all but the last five tokens, drafts, then plain decodes."""
    ends = [len(sample.tokens) for sample in samples]
    return [
        StepPlan(tuple(Chunk(s, 0, end - 5, 1) for s, end in zip(samples, ends, strict=True))),
        StepPlan(tuple(Chunk(s, end - 5, 3, 3) for s, end in zip(samples, ends, strict=True))),
        StepPlan(tuple(Chunk(s, end - 2, 1, 1) for s, end in zip(samples, ends, strict=True))),
        StepPlan(tuple(Chunk(s, end - 1, 1, 1) for s, end in zip(samples, ends, strict=True))),
    ]


def run(logits: Callable[[StepPlan], Tensor], samples: list[Sample]) -> list[Tensor]:
    with torch.inference_mode():
        return [logits(plan).clone() for plan in plans(samples)]


def some(count: int) -> list[Sample]:
    return [sequence(number, 7 + 5 * number % 23) for number in range(count)]


def test_reading_pages_gives_the_logits_of_gathering_them(model: Path) -> None:
    samples = some(3)
    plain = run(Machine(model, paged=False).eager.logits, samples)
    paged = run(Machine(model, paged=True).eager.logits, samples)

    for expected, found in zip(plain, paged, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_drafts_and_decodes_read_pages_and_gather_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[PagedRows] = []

    def kernel(queries: Tensor, pages: Tensor, where: PagedRows) -> Tensor:
        read.append(where)
        return attend_paged(queries, pages, where)

    machine = Machine(model, paged=True, kernel=kernel)
    monkeypatch.setattr(KvTensors, "gather", None)
    run(machine.eager.logits, some(2))

    assert {where.rows for where in read} >= {1, 3}


class Recording:
    """Plays CUDA's graphs: a replay computes again, into the tensor that came out first."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captured += 1
        out = compute()

        def replay() -> None:
            out.copy_(compute())

        return replay, out


@pytest.mark.parametrize("count", [1, 2, 3])
def test_captured_steps_give_the_eager_logits(model: Path, count: int) -> None:
    samples = some(count)
    machine, capture = Machine(model, paged=True), Recording()
    room = GraphRoom(max_batch=3, max_pages=8, spare_page=SPARE)
    graphed = GraphedDecoder(machine.eager, machine.decoder, machine.shape, room, capture)
    machine.kv.pages[:, [s.pages[0] + 1 for s in samples]] = 3.0
    expected = run(Machine(model, paged=False).eager.logits, samples)

    for wanted, found in zip(expected, run(graphed.logits, samples), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)

    assert capture.captured == 1, "two decode steps of a size share their graph"


def test_rows_to_spare_touch_no_page_of_a_sequence(model: Path) -> None:
    machine = Machine(model, paged=True)
    room = GraphRoom(max_batch=8, max_pages=8, spare_page=SPARE)
    graphed = GraphedDecoder(machine.eager, machine.decoder, machine.shape, room, Recording())
    sample = sequence(1, 9)
    before = machine.kv.pages.clone()
    with torch.inference_mode():
        graphed.logits(StepPlan((Chunk(sample, 8, 1, 1),) * 3))

    changed = (machine.kv.pages != before).flatten(2).any(-1).any(0).nonzero().flatten()
    assert set(changed.tolist()) == {sample.pages[2], SPARE}


def test_what_fits_no_graph_runs_without_one(model: Path) -> None:
    machine, capture = Machine(model, paged=True), Recording()
    room = GraphRoom(max_batch=2, max_pages=3, spare_page=SPARE)
    graphed = GraphedDecoder(machine.eager, machine.decoder, machine.shape, room, capture)

    def decodes(*samples: Sample) -> StepPlan:
        return StepPlan(tuple(Chunk(s, len(s.tokens) - 1, 1, 1) for s in samples))

    short = sequence(1, 9)
    misfits = [
        decodes(short, short, short),
        decodes(sequence(1, 13)),
        decodes(sequence(1, 9, adapter="a")),
        StepPlan((Chunk(short, 7, 2, 1),)),
    ]
    with torch.inference_mode():
        for plan in misfits:
            torch.testing.assert_close(graphed.logits(plan), machine.eager.logits(plan))
        assert capture.captured == 0
        graphed.logits(decodes(short))
    assert capture.captured == 1


def test_graphs_are_captured_for_few_sizes() -> None:
    assert GraphRoom(40, 8, 0).sizes == [1, 2, 4, 8, 16, 32, 40]
    assert GraphRoom(16, 8, 0).sizes == [1, 2, 4, 8, 16]
    assert GraphRoom(1, 8, 0).sizes == [1]
