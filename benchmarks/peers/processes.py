"""Makes what the peers need and runs every engine as a process.

Owns their virtual environment, the converted checkpoints and the pipes.
"""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = ("openvino-genai", "gguf", "optimum-intel[openvino]", "nncf", "llama-cpp-python")
_BUILD = {
    "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF "
    "-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF"
}
_FORMATS = {"bf16": ("bf16", "fp16"), "int8": ("q8_0", "int8")}
"""Of a GGUF and of an IR. OpenVINO stores 16 bits as float16 and computes in bfloat16 as told."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """How long an engine took for a load, and each prompt's new tokens."""

    seconds: float
    tokens: list[list[int]]


class Engine:
    """A process that speaks ``protocol.py``."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )

    def ask(self, load: Mapping[str, object]) -> Answer:
        """Serve a load and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(load) + "\n")
        self._process.stdin.flush()
        return Answer(**self.hear())

    def hear(self) -> dict[str, object]:
        """The next line it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended; see {self._log}")
        return json.loads(line)

    def close(self) -> None:
        """End it by ending its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


class Engines:
    """All engines of a checkpoint, started."""

    def __init__(self, engines: dict[str, Engine]) -> None:
        self._engines = engines

    def ask(self, load: Mapping[str, object], *, alone: bool, first: int) -> dict[str, Answer]:
        """The same load for each in turn; some serve one request at a time only.

        ``first`` says whose turn is first, so that nobody always comes after the same neighbour.
        """
        names = [name for name in self._engines if alone or name != "openvino-stateful"]
        start = first % len(names)
        answers = {name: self._engines[name].ask(load) for name in names[start:] + names[:start]}
        return {name: answers[name] for name in names}


class Peers:
    """Where the peers live, made as far as it is missing."""

    def __init__(self, folder: Path, venv: Path, tell: Tell) -> None:
        self._folder = folder
        self._bin = venv / "bin"
        self._tell = tell
        folder.mkdir(parents=True, exist_ok=True)
        if not (self._bin / "optimum-cli").exists():
            self._make(venv)

    @contextmanager
    def start(self, checkpoint: Path, precision: str, threads: int) -> Iterator[Engines]:
        """Start all engines on a checkpoint; they end with the block."""
        commands = self._commands(checkpoint, precision, str(threads))
        with ExitStack() as stack:
            engines = {}
            for name, command in commands.items():
                engine = Engine(command, self._folder / f"{name}.log")
                stack.callback(engine.close)
                engines[name] = engine
            for engine in engines.values():
                engine.hear()
            yield Engines(engines)

    def _commands(self, checkpoint: Path, precision: str, threads: str) -> dict[str, list[str]]:
        python = str(self._bin / "python")
        gguf, ir = self._convert(checkpoint, precision)
        quantization = "none" if precision == "bf16" else "int8"
        ours, llama, openvino = (
            str(HERE / f"{name}.py")
            for name in ("penstock_engine_process", "llama_cpp_engine", "openvino_engine")
        )
        return {
            "penstock": [sys.executable, ours, str(checkpoint), quantization, threads],
            "llama.cpp": [python, llama, str(gguf), threads],
            "openvino": [python, openvino, str(ir), precision, threads, "batching"],
            "openvino-stateful": [python, openvino, str(ir), precision, threads, "stateful"],
        }

    def _convert(self, checkpoint: Path, precision: str) -> tuple[Path, Path]:
        gguf_type, ir_type = _FORMATS[precision]
        gguf = self._folder / f"{checkpoint.name}-{gguf_type}.gguf"
        ir = self._folder / f"{checkpoint.name}-{ir_type}-ir"
        if not gguf.exists():
            self._tell(f"converting {checkpoint} to {gguf}")
            self._run(
                "python", str(HERE / "convert_gguf.py"), str(checkpoint), str(gguf), gguf_type
            )
        if not (ir / "openvino_model.xml").exists():
            self._tell(f"converting {checkpoint} to {ir}")
            task = ("--task", "text-generation-with-past", "--weight-format", ir_type)
            self._run(
                "optimum-cli", *("export", "openvino", "--model", str(checkpoint)), *task, str(ir)
            )
        return gguf, ir

    def _make(self, venv: Path) -> None:
        """Packages of this environment (torch) are seen in the new one, so they are not fetched twice."""
        self._tell(f"making {venv}; its log is {self._folder / 'venv.log'}")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        tail = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (venv / tail / "zz_host.pth").write_text(sysconfig.get_path("purelib"))
        for package in PACKAGES:
            self._tell(f"installing {package}")
            self._run("pip", "install", package, log="venv.log", env=_BUILD)

    def _run(
        self,
        program: str,
        *arguments: str,
        log: str = "convert.log",
        env: Mapping[str, str] | None = None,
    ) -> None:
        with (self._folder / log).open("a") as output:
            subprocess.run(
                [str(self._bin / program), *arguments],
                stdout=output,
                stderr=output,
                check=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
            )
