"""Every engine in a small size, for the tests that all of them must pass."""

from pathlib import Path

from penstock_engine.api import Engine
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_testing.engines.conformance import BLOCK, Size
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.engines.trtllm import build_on_double

KINDS = (
    "fake", "native", "native-ngram", "native-draft", "trtllm", "trtllm-ngram", "trtllm-eagle3",
)  # fmt: skip


def small_engine(kind: str, size: Size, model: Path) -> Engine:
    """One of ``KINDS``, not started: an engine, and its speculation. For trtllm its double is installed."""
    name, _, speculation = kind.partition("-")
    if name == "fake":
        return _fake(size)
    return (_trtllm if name == "trtllm" else _native)(size, model, speculation or "none")


def _fake(size: Size) -> Engine:
    config = FakeConfig(
        capacity_blocks=size.capacity_blocks,
        max_batch=size.max_batch,
        max_waiting=size.max_waiting,
        max_context_tokens=size.max_context,
    )
    return FakeEngine(config)


def _native(size: Size, model: Path, speculation: str) -> Engine:
    settings = NativeSettings(
        model,
        device="cpu",
        kv_blocks=size.capacity_blocks,
        max_batch=size.max_batch,
        max_batched_tokens=48,
        max_waiting=size.max_waiting,
        max_context=size.max_context,
        threads=1,
        speculation=speculation,
        draft_model=model if speculation == "draft" else None,
    )
    return NativeEngine(settings)


def _trtllm(size: Size, model: Path, speculation: str) -> Engine:
    kind: dict[str, object] = {"mode": speculation}
    if speculation == "eagle3":
        kind["draft_model"] = "head"
    settings = {
        "kv_cache": {"max_tokens": size.capacity_blocks * BLOCK},
        "max_batch_size": size.max_batch,
        "max_waiting": size.max_waiting,
        "max_seq_len": size.max_context,
        "speculation": kind,
    }
    return build_on_double(model, settings)
