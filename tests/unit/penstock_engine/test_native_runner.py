"""The runner on a tiny checkpoint: logits of a step do not depend on how the step is cut."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penstock_engine.api import EngineRequest
from penstock_engine.native.execution.runner import Runner
from penstock_engine.native.loading import draw_up, load_runner
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Request, Sample
from penstock_engine.native.settings import NativeSettings
from penstock_testing.engines.checkpoints import write_checkpoint

BLOCK = 4
TOKENS = [(5 * i * i + 3) % 250 for i in range(30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("runner"))


@pytest.fixture
def runner(model: Path) -> Runner:
    settings = NativeSettings(model, device="cpu", kv_blocks=40, block_tokens=BLOCK)
    return load_runner(draw_up(settings))


def sequence(pages: Sequence[int], tokens: Sequence[int] = TOKENS) -> Sample:
    sample = Request(EngineRequest("r", tokens, 9), 0, 0.0).samples[0]
    sample.pages = list(pages)
    return sample


def compute(runner: Runner, *chunks: Chunk, copies: tuple[tuple[int, int], ...] = ()) -> Tensor:
    with torch.inference_mode():
        return runner.logits(StepPlan(chunks, copies))


def whole(runner: Runner, tokens: Sequence[int] = TOKENS) -> Tensor:
    """Logits of every position, computed at once on pages that no test uses."""
    return compute(runner, Chunk(sequence(range(30, 40), tokens), 0, len(tokens), len(tokens)))


@pytest.mark.parametrize("cuts", [[30], [1] * 30, [13, 17], [9, 1, 12, 8], [8, 8, 8, 6]])
def test_chunks_give_the_logits_of_the_whole(runner: Runner, cuts: list[int]) -> None:
    sample = sequence([9, 2, 17, 4, 5, 29, 0, 11])
    parts, start = [], 0
    for count in cuts:
        parts.append(compute(runner, Chunk(sample, start, count, count)))
        start += count

    torch.testing.assert_close(torch.cat(parts), whole(runner), atol=1e-4, rtol=1e-4)


def test_several_positions_of_several_sequences_can_be_verified_at_once(runner: Runner) -> None:
    """As speculation will: a few drafted tokens each, logits for all of them, in plan order."""
    first, second = sequence(range(8)), sequence(range(10, 18), TOKENS[::-1])
    expected = [whole(runner), whole(runner, TOKENS[::-1])]
    compute(runner, Chunk(first, 0, 20), Chunk(second, 0, 7))

    logits = compute(runner, Chunk(first, 20, 4, 4), Chunk(second, 7, 4, 3))

    wanted = torch.cat([expected[0][20:24], expected[1][8:11]])
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)


def test_a_mixed_step_serves_decodes_and_prefills(runner: Runner) -> None:
    first, second = sequence(range(8)), sequence(range(10, 18))
    expected = whole(runner)
    compute(runner, Chunk(first, 0, 25), Chunk(second, 0, 10))

    logits = compute(runner, Chunk(second, 10, 15, 1), Chunk(first, 25, 1, 1))

    torch.testing.assert_close(logits, expected[[24, 25]], atol=1e-4, rtol=1e-4)


def test_copied_pages_hold_what_the_source_held(runner: Runner) -> None:
    leader = sequence(range(8))
    compute(runner, Chunk(leader, 0, 10))
    fork = sequence([0, 1, 20, 21, 22, 23, 24, 25], [*TOKENS[:10], *TOKENS[:5]])

    logits = compute(runner, Chunk(fork, 10, 5, 1), copies=((2, 20),))

    expected = whole(runner, [*TOKENS[:10], *TOKENS[:5]])
    torch.testing.assert_close(logits, expected[-1:], atol=1e-4, rtol=1e-4)


def test_samples_that_fork_draw_from_one_row(runner: Runner) -> None:
    spec = EngineRequest("r", TOKENS, 9, n=3)
    samples = Request(spec, 0, 0.0).samples
    samples[0].pages = list(range(8))
    other = sequence(range(10, 18))

    result = runner.run(StepPlan((Chunk(other, 0, 6), Chunk(samples[0], 0, 30, 1, tuple(samples)))))

    assert len(result.drawn) == 3
    assert result.seconds > 0
