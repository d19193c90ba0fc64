"""The kernel's cache and what happens where it cannot be compiled."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from penstock_core.errors import InvalidRequest, NotSupported
from penstock_engine.native.fused import build
from penstock_engine.native.fused.library import load
from penstock_engine.native.loading import draw_up, load_runner
from penstock_engine.native.settings import NativeSettings
from penstock_testing.engines.checkpoints import write_checkpoint


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a compiler that only notes its calls and writes a file."""
    folder = tmp_path / "cache"
    compiler = tmp_path / "cxx"
    compiler.write_text(
        "#!/bin/sh\n"
        f'echo call >> "{tmp_path}/calls"\n'
        'while [ "$1" != -o ]; do shift; done\n'
        'echo made > "$2"\n',
        encoding="utf-8",
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PENSTOCK_KERNEL_CACHE", str(folder))
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "_cpu_features", lambda: {"avx2", "fma"})
    return folder


def calls(cache: Path) -> int:
    noted = cache.parent / "calls"
    return len(noted.read_text(encoding="utf-8").splitlines()) if noted.exists() else 0


def test_it_is_compiled_once_and_told(cache: Path) -> None:
    told: list[str] = []

    first = build.find_or_build(told.append)
    again = build.find_or_build(told.append)

    assert first == again
    assert first.parent == cache
    assert calls(cache) == 1
    assert len(told) == 2  # before and after
    assert not list(cache.glob(".step-*"))


def test_processes_that_start_together_compile_it_once(cache: Path) -> None:
    program = (
        "from penstock_engine.native.fused import build\n"
        "build._cpu_features = lambda: {'avx2', 'fma'}\n"
        "print(build.find_or_build(lambda line: None))\n"
    )
    command = [sys.executable, "-c", program]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    paths = {process.communicate(timeout=60)[0] for process in running}

    assert [process.returncode for process in running] == [0] * 4
    assert len(paths) == 1
    assert calls(cache) == 1


def test_another_cpu_gets_a_library_of_its_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build.find_or_build(lambda _: None)
    monkeypatch.setattr(build, "_cpu_features", lambda: {"avx2", "fma", "avx512f"})

    assert build.find_or_build(lambda _: None) != first


def test_a_failing_compiler_is_quoted_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = cache.parent / "broken"
    compiler.write_text("#!/bin/sh\necho 'no such dialect' >&2; exit 1\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))

    with pytest.raises(NotSupported, match="no such dialect"):
        build.find_or_build(lambda _: None)

    assert [path.name for path in cache.iterdir()] == ["lock"]
    assert build.main() == 0
    assert "no such dialect" in capsys.readouterr().out


def test_without_a_compiler_torch_serves_and_the_log_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = write_checkpoint(cache.parent / "model", {"torch_dtype": "bfloat16"})
    settings = NativeSettings(model, device="cpu", kv_blocks=4)

    with caplog.at_level(logging.WARNING):
        plan = draw_up(settings)

    assert plan.info.device == "cpu (eager, float32)"
    assert "no-such-compiler" in caplog.text
    load_runner(plan)
    with pytest.raises(NotSupported, match="no-such-compiler"):
        draw_up(NativeSettings(model, device="cpu", kv_blocks=4, kernel="fused"))


def test_an_old_cpu_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_cpu_features", lambda: {"sse2"})

    with pytest.raises(NotSupported, match="avx2"):
        build.find_or_build(lambda _: None)


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "step.so"
    broken.write_bytes(b"made")

    with pytest.raises(NotSupported, match="cannot be loaded"):
        load(broken)


def test_unknown_kernels_and_quantizations_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    with pytest.raises(InvalidRequest, match="warp"):
        draw_up(NativeSettings(tmp_path, kernel="warp"))
    with pytest.raises(InvalidRequest, match="int3"):
        draw_up(NativeSettings(tmp_path, quantization="int3"))
    with pytest.raises(NotSupported, match="float32 or bfloat16"):
        draw_up(NativeSettings(tmp_path, kernel="fused", dtype="float16", device="cpu"))


@pytest.mark.parametrize("kernel", ["auto", "eager"])
def test_int8_halves_the_memory_of_weights_and_says_so(
    tmp_path: Path, kernel: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_checkpoint(tmp_path / "m", {"hidden_size": 256, "intermediate_size": 512})

    def loaded(quantization: str) -> float:
        caplog.clear()
        with caplog.at_level(logging.INFO), torch.inference_mode():
            settings = NativeSettings(
                model,
                dtype="float32",
                device="cpu",
                kv_blocks=4,
                kernel=kernel,
                quantization=quantization,
            )
            load_runner(draw_up(settings))
        line = next(r.getMessage() for r in caplog.records if "weights take" in r.getMessage())
        assert ("int8" in line) == (quantization == "int8")
        return float(line.partition("weights take ")[2].split()[0])

    assert loaded("int8") < 0.5 * loaded("none")
