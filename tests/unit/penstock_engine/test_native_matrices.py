"""Every way to hold a matrix multiplies like the plain one."""

import pytest
import torch

from penstock_engine.native.models.quantization import (
    PackedMatrix,
    add_linear,
    can_pack,
    linear,
    num_bytes,
    pack,
    preparation,
    quantize,
)

needs_onednn = pytest.mark.skipif(not can_pack(), reason="PyTorch was built without oneDNN")
CPU = torch.device("cpu")


@needs_onednn
@pytest.mark.parametrize("rows", [1, 3, 16, 100])
@pytest.mark.parametrize(("outputs", "inputs"), [(8, 16), (100, 33), (192, 64)])
@pytest.mark.parametrize("biased", [False, True])
def test_packed_product_is_the_plain_one(
    rows: int, outputs: int, inputs: int, biased: bool
) -> None:
    some = torch.randn(rows, inputs).bfloat16()
    weight = torch.randn(outputs, inputs).bfloat16()
    bias = torch.randn(outputs).bfloat16() if biased else None

    product = linear(some, pack(weight), bias)

    assert product.shape == (rows, outputs)
    torch.testing.assert_close(product, linear(some, weight, bias), rtol=2e-2, atol=5e-2)


@needs_onednn
def test_packed_product_is_added_to_the_residual() -> None:
    some, residual = torch.randn(4, 32).bfloat16(), torch.randn(4, 24).bfloat16()
    weight = torch.randn(24, 32).bfloat16()

    total = add_linear(residual.clone(), some, pack(weight), None)

    expected = add_linear(residual, some, weight, None)
    torch.testing.assert_close(total, expected, rtol=2e-2, atol=1e-1)


@needs_onednn
def test_packed_matrix_tells_its_memory() -> None:
    assert num_bytes(pack(torch.zeros(24, 32, dtype=torch.bfloat16))) == 24 * 32 * 2


@needs_onednn
def test_bfloat16_is_packed_on_a_cpu() -> None:
    weight = torch.zeros(8, 8, dtype=torch.bfloat16)

    assert isinstance(preparation(torch.bfloat16, CPU, int8=False)(weight), PackedMatrix)


def test_float32_stays_as_it_is() -> None:
    weight = torch.zeros(8, 8)

    assert preparation(torch.float32, CPU, int8=False)(weight) is weight


def test_int8_goes_before_packing() -> None:
    assert preparation(torch.bfloat16, CPU, int8=True) is quantize


@pytest.mark.parametrize("rows", [1, 16, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_int8_product_is_that_of_what_its_bytes_stand_for(rows: int, biased: bool) -> None:
    weight = quantize(torch.randn(96, 64))
    meant = weight.values.float() * weight.scales.unsqueeze(1)
    some, bias = torch.randn(rows, 64), torch.randn(96) if biased else None

    expected = torch.nn.functional.linear(some, meant, bias)
    torch.testing.assert_close(linear(some, weight, bias), expected, rtol=1e-5, atol=1e-4)
    narrow = linear(some.bfloat16(), weight, None if bias is None else bias.bfloat16())
    torch.testing.assert_close(narrow.float(), expected, rtol=3e-2, atol=3e-1)


def test_int8_in_float32_multiplies_with_a_widened_matrix() -> None:
    """PyTorch's own product with bytes has no quick form in float32."""
    weight, some = quantize(torch.randn(96, 64)), torch.randn(5, 64)

    with torch.profiler.profile() as seen:
        linear(some, weight)

    names = {event.key for event in seen.key_averages()}
    assert "aten::linear" in names
    assert "aten::_weight_int8pack_mm" not in names
