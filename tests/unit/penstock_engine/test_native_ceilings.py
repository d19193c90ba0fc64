"""What a model asks of a machine, as benchmarks count it; the machine's times are not looked at."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from penstock_engine.native import ceilings
from penstock_engine.native.settings import NativeSettings
from penstock_testing.engines.checkpoints import write_checkpoint


@pytest.fixture(autouse=True)
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_fastest", lambda *_: 1.0)


@pytest.mark.parametrize(("quantization", "size"), [("none", 4), ("int8", 1)])
def test_every_matrix_that_a_token_is_multiplied_with_counts(
    quantization: str, size: int, tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path)
    tensors = load_file(model / "model.safetensors")
    matrices = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 2}
    del matrices["model.embed_tokens.weight"]
    settings = NativeSettings(
        model, device="cpu", kernel="eager", dtype="float32", quantization=quantization, threads=1
    )
    threads = torch.get_num_threads()

    found = ceilings.measure_ceilings(settings)

    assert found.weights == sum(matrix.numel() for matrix in matrices.values())
    assert found.weight_bytes == found.weights * size
    assert found.matmul_flops_per_s == 2 * 1024 * 2048 * 2048
    assert found.read_fraction(2.0) == 2 * found.weight_bytes / found.read_bytes_per_s
    assert found.matmul_fraction(3.0) == 6 * found.weights / found.matmul_flops_per_s
    assert torch.get_num_threads() == threads
