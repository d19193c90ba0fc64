"""The kernel draws what torch draws."""

import pytest
import torch

from penstock_core.errors import NotSupported
from penstock_engine.native.fused.draw import KernelPicker
from penstock_engine.native.fused.library import open_library
from penstock_engine.native.sampling import Picker, pick


@pytest.fixture(scope="module")
def kernel() -> Picker:
    try:
        return KernelPicker(open_library())
    except NotSupported as error:
        pytest.skip(error.message)


@pytest.mark.parametrize("vocabulary", [1, 5, 16, 100, 4096, 8191])
def test_best_token_is_torchs(kernel: Picker, vocabulary: int) -> None:
    logits = torch.randn(7, vocabulary)

    drawn = kernel(logits, [0.0] * 7, [0.0] * 7)

    assert drawn == logits.argmax(dim=-1).tolist()


def test_first_of_equally_good_tokens_is_the_best(kernel: Picker) -> None:
    logits = torch.zeros(1, 100)
    logits[0, [37, 38, 90]] = 4.0

    assert kernel(logits, [0.0], [0.0]) == [37]


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 3.0])
@pytest.mark.parametrize("vocabulary", [3, 33, 8192])
def test_draws_are_torchs_but_where_rounding_decides(
    kernel: Picker, vocabulary: int, temperature: float
) -> None:
    rows = 200
    logits = torch.randn(rows, vocabulary) * 3
    points = torch.rand(rows, dtype=torch.float64).tolist()

    ours = kernel(logits, [temperature] * rows, points)

    theirs = pick(logits, [temperature] * rows, points)
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= 2


@pytest.mark.parametrize("draw", ["kernel", "torch"])
def test_forbidden_tokens_are_never_drawn(kernel: Picker, draw: str) -> None:
    logits = torch.full((4, 50), float("-inf"))
    logits[:, [20, 33]] = torch.tensor([1.0, 2.0])
    picker = kernel if draw == "kernel" else pick

    drawn = picker(logits, [1.0] * 4, [0.0, 0.2, 0.5, 1.0 - 2.0**-53])

    assert drawn == [20, 20, 33, 33]


def test_rows_with_and_without_a_temperature_share_a_call(kernel: Picker) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 3)

    assert kernel(logits, [0.0, 5.0, 0.0], [0.0, 0.0, 0.0]) == [2, 0, 2]
