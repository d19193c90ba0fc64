"""The kernel draws what torch draws."""

import numpy as np
import pytest
import torch

from penstock_engine.native.execution.sampling import Rows, TorchRows
from penstock_engine.native.fused.draw import KernelRows
from penstock_engine.native.structured.masks import RowMasks
from penstock_testing.engines.kernel import kernel_or_lack


@pytest.fixture(scope="module")
def kernel() -> Rows:
    library = kernel_or_lack()
    if isinstance(library, str):
        pytest.skip(library)
    return KernelRows(library)


@pytest.mark.parametrize("vocabulary", [1, 5, 16, 100, 4096, 8191])
def test_best_token_is_torchs(kernel: Rows, vocabulary: int) -> None:
    logits = torch.randn(7, vocabulary)

    drawn = kernel.pick(logits, [0.0] * 7, [0.0] * 7)

    assert drawn == logits.argmax(dim=-1).tolist()


def test_first_of_equally_good_tokens_is_the_best(kernel: Rows) -> None:
    logits = torch.zeros(1, 100)
    logits[0, [37, 38, 90]] = 4.0

    assert kernel.pick(logits, [0.0], [0.0]) == [37]


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 3.0])
@pytest.mark.parametrize("vocabulary", [3, 33, 8192])
def test_draws_are_torchs_but_where_rounding_decides(
    kernel: Rows, vocabulary: int, temperature: float
) -> None:
    rows = 200
    logits = torch.randn(rows, vocabulary) * 3
    points = torch.rand(rows, dtype=torch.float64).tolist()

    ours = kernel.pick(logits, [temperature] * rows, points)

    theirs = TorchRows().pick(logits, [temperature] * rows, points)
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= 2


@pytest.mark.parametrize("draw", ["kernel", "torch"])
def test_forbidden_tokens_are_never_drawn(kernel: Rows, draw: str) -> None:
    logits = torch.full((4, 50), float("-inf"))
    logits[:, [20, 33]] = torch.tensor([1.0, 2.0])
    rows = kernel if draw == "kernel" else TorchRows()

    drawn = rows.pick(logits, [1.0] * 4, [0.0, 0.2, 0.5, 1.0 - 2.0**-53])

    assert drawn == [20, 20, 33, 33]


def test_rows_with_and_without_a_temperature_share_a_call(kernel: Rows) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 3)

    assert kernel.pick(logits, [0.0, 5.0, 0.0], [0.0, 0.0, 0.0]) == [2, 0, 2]


def some_masks(rows: list[int], vocabulary: int) -> RowMasks:
    words = vocabulary // 32 + 1
    allowed = np.random.default_rng(1).integers(0, 1 << 32, (len(rows), words), dtype=np.uint32)
    allowed[0, 0] |= 1
    allowed[1] = 0xFFFFFFFF
    allowed[2] = 0
    allowed[2, (vocabulary - 1) // 32] = 1 << (vocabulary - 1) % 32
    return RowMasks(rows, allowed, {}, allowed.ctypes.data)


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 100, 4096, 8191])
def test_forbidden_tokens_are_torchs(kernel: Rows, vocabulary: int) -> None:
    logits = torch.randn(5, vocabulary)
    masks = some_masks([0, 2, 4], vocabulary)
    ours, theirs = logits.clone(), logits.clone()

    kernel.forbid(ours, masks)

    TorchRows().forbid(theirs, masks)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[[1, 2, 3]], logits[[1, 2, 3]])
    assert torch.isinf(ours[[0, 4]]).any() or vocabulary == 1


@pytest.mark.parametrize("rows", [[0, 2, 4], [0, 1, 2]])
@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 100, 4096, 8191])
def test_a_draw_under_masks_is_that_from_forbidden_logits(
    kernel: Rows, vocabulary: int, rows: list[int]
) -> None:
    logits = torch.randn(max(rows) + 1, vocabulary) * 3
    masks = some_masks(rows, vocabulary)
    forbidden = logits.clone()
    kernel.forbid(forbidden, masks)

    for temperature in (0.0, 0.3, 2.0):
        for point in (0.0, 0.37, 1.0 - 2.0**-53):
            chosen = [temperature] * len(logits), [point] * len(logits)
            assert kernel.pick(logits, *chosen, masks) == kernel.pick(forbidden, *chosen)
    assert kernel.pick(logits, *chosen, masks)[rows[2]] == vocabulary - 1
