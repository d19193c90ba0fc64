"""Compiles the CPU kernel once per machine and says where it lies.

Owns the compiler's command line and the cache: a library is named by a digest of its sources,
its flags and the CPU's features, so neither an upgrade nor a home shared by different machines can
load a wrong one. It is plain C++ behind a C interface, loaded with ctypes: without torch's and
Python's headers a build takes seconds instead of a minute, it needs no ninja, one library serves
every version of both, and ctypes releases the GIL for the length of a call. Knows no torch.

``python -m penstock_engine.native.fused.build`` does it ahead of time, and never fails.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from penstock_core.errors import NotSupported

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "kernels"
_FLAGS = (
    *("-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", "-Wno-psabi"),
    # A row must come out the same in any batch: no -ffast-math but its harmless parts, and no
    # fusing of products and sums beyond what the source says.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing"),
)
_COMPILERS = ("g++", "clang++", "c++")
_NEEDED = {"avx2", "fma"}
_TIMEOUT_S = 300

Tell = Callable[[str], None]


def find_or_build(tell: Tell = logger.info) -> Path:
    """Path of the library, compiled now if it was not before; ``tell`` hears if it takes a while.

    Raises:
        NotSupported: no compiler is there, the CPU lacks AVX2, or the compiler gave up.
    """
    features = _cpu_features()
    if not features >= _NEEDED:
        raise NotSupported(f"the kernel needs an x86-64 CPU with {' and '.join(sorted(_NEEDED))}")
    folder = cache_folder()
    target = folder / f"step-{_digest(features)}.so"
    if target.exists():
        return target
    compiler = _find_compiler()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # else every process started at once would compile it
            if not target.exists():
                _compile(compiler, target, tell)
    except OSError as error:
        raise NotSupported(f"the kernel cannot be kept in {folder}: {error}") from error
    return target


def cache_folder() -> Path:
    """``PENSTOCK_KERNEL_CACHE``, else ``penstock`` in the user's cache directory."""
    named = os.environ.get("PENSTOCK_KERNEL_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"


def _cpu_features() -> set[str]:
    """Flags of the first CPU as Linux tells them; empty elsewhere."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return set()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split()[2:]) for line in lines if line.startswith("flags")), set())


def _digest(features: set[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(" ".join([*_FLAGS, *sorted(features)]).encode())
    return digest.hexdigest()[:20]


def _find_compiler() -> str:
    named = os.environ.get("CXX")
    for name in (named,) if named else _COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    raise NotSupported(f"no C++ compiler was found ({named or ', '.join(_COMPILERS)})")


def _compile(compiler: str, target: Path, tell: Tell) -> None:
    """Into a name of its own, then renamed: nobody ever sees half a library."""
    tell(f"compiling the CPU kernel with {compiler}, once; this takes about 15 s")
    began = time.monotonic()
    handle, made = tempfile.mkstemp(dir=target.parent, prefix=".step-", suffix=".so")
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, str(SOURCES / "step.cpp"), "-o", made]
        done = subprocess.run(  # noqa: S603 - our own source, the user's own compiler
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode:
            last = "; ".join(done.stderr.strip().splitlines()[:3])
            raise NotSupported(f"{compiler} could not compile the kernel: {last}")
        Path(made).chmod(0o700)
        Path(made).replace(target)
    except subprocess.TimeoutExpired as error:
        raise NotSupported(f"{compiler} took more than {_TIMEOUT_S} s") from error
    finally:
        Path(made).unlink(missing_ok=True)
    tell(f"compiled the CPU kernel in {time.monotonic() - began:.0f} s: {target}")


def main() -> int:
    """Compile now, telling how it goes; the status is 0 either way, since nothing depends on it."""
    try:
        path = find_or_build(_print)
    except NotSupported as error:
        _print(f"The CPU kernel was not built; PyTorch's own kernels will serve. {error.message}")
    else:
        _print(f"The CPU kernel is ready: {path}")
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
