"""On a GPU: the Triton kernel against PyTorch's operators, captured steps against eager ones."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from penstock_engine.api import EngineRequest, Sampling, TokenOut
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.models.paged import PagedRows, attend_paged
from penstock_engine.native.settings import NativeSettings
from penstock_models import DEMO
from penstock_testing.engines.checkpoints import write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]

SHAPES = [(4, 2, 12, 16), (6, 1, 64, 32), (8, 8, 128, 32), (32, 8, 128, 64), (2, 1, 80, 32)]
CLOSE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows_each", [1, 5])
def test_the_kernel_attends_as_pytorch_does(
    shape: tuple[int, int, int, int], dtype: torch.dtype, rows_each: int
) -> None:
    from penstock_engine.native.cuda.paged import attend_paged as kernel

    heads, kv_heads, dim, block = shape
    sequences, width = 7, 33
    torch.manual_seed(0)
    pages = torch.randn(300, block, 2, kv_heads, dim, device="cuda", dtype=dtype)
    tables = torch.randint(0, 300, (sequences, width), device="cuda")
    lengths = torch.randint(1, width * block + 1, (sequences * rows_each,), device="cuda")
    lengths[0], lengths[-1] = 1, width * block
    queries = torch.randn(sequences * rows_each, heads, dim, device="cuda", dtype=dtype)
    where = PagedRows(tables, lengths, rows_each)

    found, wanted = kernel(queries, pages, where), attend_paged(queries, pages, where)

    torch.testing.assert_close(found, wanted, atol=CLOSE[dtype], rtol=CLOSE[dtype])


async def greedy(
    model: Path, prompts: Sequence[Sequence[int]], new_tokens: int = 24, **changes: object
) -> list[list[int]]:
    settings = NativeSettings(model, dtype="float32", kv_blocks=400, **changes)  # type: ignore[arg-type]
    engine = NativeEngine(settings)
    await engine.start()

    async def one(number: int, prompt: Sequence[int]) -> list[int]:
        request = EngineRequest(f"{number}", prompt, new_tokens, Sampling(temperature=0))
        outputs = [out async for out in engine.generate(request) if isinstance(out, TokenOut)]
        return [token for out in outputs for token in out.token_ids]

    try:
        return list(await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts))))
    finally:
        await engine.close()


@pytest.mark.parametrize("kind", ["demo", "tiny"])
@pytest.mark.parametrize("speculation", ["none", "ngram"])
@pytest.mark.parametrize("quantization", ["none", "int8"])
async def test_captured_steps_draw_the_tokens_of_a_cpu(
    kind: str, speculation: str, quantization: str, tmp_path: Path
) -> None:
    model = DEMO if kind == "demo" else write_checkpoint(tmp_path)
    prompts = [[(7 * i + n) % 250 for i in range(n)] for n in (1, 3, 17, 31, 32, 33, 90, 200, 64)]

    async def said(device: str, **changes: object) -> list[list[int]]:
        return await greedy(model, prompts, device=device, quantization=quantization, **changes)  # type: ignore[arg-type]

    graphs = await said("cuda", speculation=speculation)
    eager = await said("cuda", kernel="eager")
    cpu = await said("cpu", kernel="eager")

    assert graphs == eager == cpu
